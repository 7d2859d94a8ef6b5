package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"catalog-backup/shared/lab/sample"
)

func (s *stack) build(ctx context.Context) (string, error) {
	if _, err := s.compose(ctx, s.site, "build"); err != nil {
		return "", err
	}
	return s.docker(ctx, "run", "--rm", s.image(), "worker", "--version")
}

// image is the name of the programs' image.
func (s *stack) image() string {
	for _, e := range s.env {
		if v, ok := strings.CutPrefix(e, "VERSION="); ok {
			return "catalog-backup:" + v
		}
	}
	return ""
}

func (s *stack) up(ctx context.Context) (string, error) {
	if _, err := s.compose(ctx, s.site, "up", "-d"); err != nil {
		return "", err
	}
	return s.healthy(ctx, s.site)
}

var setRE = regexp.MustCompile(`(?m)^set +(\S+) \(full\)$`)

func (s *stack) backUp(ctx context.Context) (string, error) {
	out, err := s.compose(ctx, s.site, "run", "--rm", "producer", "backup-all", "--full", "--wait")
	if err != nil {
		return "", err
	}
	m := setRE.FindStringSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("it names no set:\n%s", out)
	}
	s.set = m[1]
	s.made++
	return s.set, nil
}

func (s *stack) verify(ctx context.Context) (string, error) {
	return s.compose(ctx, s.site, "exec", "-T", "worker", "worker", "verify", s.set)
}

// restore brings the set back in containers, volumes and a network of their own, which have
// nothing of the source but the directory of the sets, and cannot write there.
func (s *stack) restore(ctx context.Context) (string, error) {
	// 10: the worker's image has no PostgreSQL, of which it warns; the server has an image of its own.
	var exited *exec.ExitError
	if _, err := s.compose(ctx, s.fresh, "run", "--rm", "restore", s.set); err != nil && (!errors.As(err, &exited) || exited.ExitCode() != 10) {
		return "", err
	}
	if _, err := s.compose(ctx, s.fresh, "up", "-d", "postgres"); err != nil {
		return "", err
	}
	return s.healthy(ctx, s.fresh)
}

// compareServers holds rows, records, positions, settings and rules of both sides together.
func (s *stack) compareServers(ctx context.Context) (string, error) {
	return s.compare(ctx, nil, "-e", "SITE_FILES=")
}

// compareFiles holds the files together, as root, which sees owners too.
func (s *stack) compareFiles(ctx context.Context) (string, error) {
	excluded := func(name string) bool { return strings.HasSuffix(name, ".tmp") } // files.exclude in config.yaml
	return s.compare(ctx, excluded, "-u", "0", "-e", "SITE_DSN=", "-e", "SITE_BROKERS=")
}

func (s *stack) compare(ctx context.Context, excluded func(string) bool, flags ...string) (string, error) {
	describe := func(p project, service string) (map[string]string, error) {
		args := append([]string{"run", "--rm", "--no-deps", "-T"}, flags...)
		out, err := s.compose(ctx, p, append(args, service, "describe")...)
		if err != nil {
			return nil, err
		}
		found := map[string]string{}
		return found, json.Unmarshal([]byte(out), &found)
	}
	source, err := describe(s.site, "seed")
	if err != nil {
		return "", err
	}
	restored, err := describe(s.fresh, "describe")
	if err != nil {
		return "", err
	}
	for name := range source {
		if excluded != nil && excluded(name) {
			delete(source, name)
		}
	}
	if wrong := sample.Differences(source, restored); len(wrong) > 0 || len(source) == 0 {
		return "", fmt.Errorf("%d things differ:\n%s", len(wrong), strings.Join(wrong, "\n"))
	}
	return fmt.Sprintf("%d descriptions (tables, partitions, positions, settings, rules, files): equal", len(source)), nil
}

// standing is what `producer status --json` tells of a run.
type standing struct {
	Run      string  `json:"run"`
	State    string  `json:"state"`
	Error    *string `json:"error"`
	Attempts []struct {
		Stage   string `json:"stage"`
		Outcome string `json:"outcome"`
	} `json:"attempts"`
}

func (s *stack) standing(ctx context.Context, container, id string) (run standing, err error) {
	out, err := s.docker(ctx, "exec", container, "producer", "status", "--json", id)
	if err != nil {
		return run, err
	}
	return run, json.Unmarshal([]byte(out), &run)
}

// killWorker adds a second worker, starts a run, kills the container that runs pgBackRest,
// and sees the other one make the set.
func (s *stack) killWorker(ctx context.Context) (string, error) {
	if _, err := s.compose(ctx, s.site, "up", "-d", "--no-recreate", "--scale", "worker=2"); err != nil {
		return "", err
	}
	if _, err := s.healthy(ctx, s.site); err != nil {
		return "", err
	}
	workers, err := s.containers(ctx, s.site, "worker")
	if err != nil || len(workers) != 2 {
		return "", errors.Join(err, fmt.Errorf("%d workers run", len(workers)))
	}
	var id, victim string
	for tries := 0; victim == ""; tries++ {
		if tries == 5 {
			return "", errors.New("five runs had ended before pgBackRest was seen in a container")
		}
		if id, victim, err = s.runWithVictim(ctx, workers); err != nil {
			return "", err
		}
		s.made++ // the run that was too quick, or the one that goes on in the other worker
	}
	if _, err := s.docker(ctx, "kill", "-s", "KILL", victim); err != nil {
		return "", err
	}
	other := workers[0]
	if other == victim {
		other = workers[1]
	}
	run, err := s.awaitRun(ctx, other, id)
	if err != nil {
		return "", err
	}
	var postgres []string
	for _, a := range run.Attempts {
		if a.Stage == "postgres" {
			postgres = append(postgres, a.Outcome)
		}
	}
	if strings.Join(postgres, " ") != "crashed good" {
		return "", fmt.Errorf("the attempts at postgres ended as %v, not crashed and then good", postgres)
	}
	out, err := s.docker(ctx, "inspect", "--format", "{{.State.Status}}", victim)
	if err != nil || strings.TrimSpace(out) != "exited" {
		return "", errors.Join(err, fmt.Errorf("the killed container is %s", strings.TrimSpace(out)))
	}
	return "in postgres; the other worker made the set", nil
}

// runWithVictim starts a run and finds the container that runs pgBackRest in the
// postgres stage; "" if the run ended before one was seen.
func (s *stack) runWithVictim(ctx context.Context, workers []string) (id, victim string, err error) {
	out, err := s.docker(ctx, "exec", workers[0], "producer", "backup-all", "--full")
	if err != nil {
		return "", "", err
	}
	id = strings.TrimSpace(out)
	err = await(ctx, 2*time.Minute, func() error {
		run, err := s.standing(ctx, workers[0], id)
		if err != nil {
			return err
		}
		if run.State == "succeeded" {
			return nil
		}
		if n := len(run.Attempts); n == 0 || run.Attempts[n-1].Stage != "postgres" {
			return errors.New("the run is not in postgres yet")
		}
		for _, w := range workers {
			if out, err := s.docker(ctx, "top", w, "-o", "pid,args"); err == nil && strings.Contains(out, "pgbackrest") {
				victim = w
				return nil
			}
		}
		return errors.New("no worker runs pgBackRest")
	})
	return id, victim, err
}

// awaitRun waits for the end of a run, by the eyes of a worker's container.
func (s *stack) awaitRun(ctx context.Context, container, id string) (run standing, err error) {
	err = await(ctx, 3*time.Minute, func() error {
		var err error
		if run, err = s.standing(ctx, container, id); err != nil {
			return err
		}
		switch run.State {
		case "succeeded", "failed", "cancelled":
			return nil
		}
		return fmt.Errorf("run %s is %s", id, run.State)
	})
	if err == nil && run.State != "succeeded" {
		err = fmt.Errorf("run %s %s: %v", id, run.State, run.Error)
	}
	return run, err
}

// clean looks at what the runs, the killed one above all, left behind: no staging, no slot,
// and nothing in the dump directory but sets that are good.
func (s *stack) clean(ctx context.Context) (string, error) {
	workers, err := s.containers(ctx, s.site, "worker")
	if err != nil {
		return "", err
	}
	running := ""
	for _, w := range workers {
		if out, err := s.docker(ctx, "inspect", "--format", "{{.State.Running}}", w); err == nil && strings.TrimSpace(out) == "true" {
			running = w
		}
	}
	left, err := s.docker(ctx, "exec", running, "sh", "-c", "{ ls -A /data2/tmp; ls -A /data2/backup; } | grep -v -e '_backup[.]' -e '^[.]catalog-backup-worker[.]' || true")
	if err != nil || strings.TrimSpace(left) != ".catalog-backup.lock" {
		return "", errors.Join(err, fmt.Errorf("left in the temp and dump directories: %q", left))
	}
	server, err := s.one(ctx, s.site, "postgres")
	if err != nil {
		return "", err
	}
	slots, err := s.docker(ctx, "exec", "-u", "postgres", server, "psql", "-AtXc", "select slot_name from pg_replication_slots")
	if err != nil || strings.TrimSpace(slots) != "" {
		return "", errors.Join(err, fmt.Errorf("slots left: %q", slots))
	}
	out, err := s.docker(ctx, "exec", running, "sh", "-c", "ls /data2/backup/*_alation_backup.json | wc -l; for m in /data2/backup/*_alation_backup.json; do worker verify \"$m\" || exit; done")
	if err != nil || !strings.HasPrefix(strings.TrimSpace(out), fmt.Sprintf("%d\n", s.made)) {
		return "", errors.Join(err, fmt.Errorf("the sets: %s", out))
	}
	return fmt.Sprintf("no staging, no slot; all %d sets are good", s.made), nil
}

// lookAt asks the dashboard from this machine: nothing without a log-in, the overview with
// it, health for everybody, and nothing by another address of this machine.
func (s *stack) lookAt(ctx context.Context) (string, error) {
	id, err := s.one(ctx, s.site, "dashboard")
	if err != nil {
		return "", err
	}
	out, err := s.docker(ctx, "exec", id, "cat", "/run/catalog-backup/dashboard-password")
	if err != nil {
		return "", err
	}
	password := strings.TrimSpace(out)
	if len(password) < 32 {
		return "", errors.New("its password is short")
	}
	for _, ask := range []struct {
		path, password string
		want           int
	}{
		{"/", "", http.StatusUnauthorized}, {"/", "admin", http.StatusUnauthorized}, {"/", password, http.StatusOK},
		{"/healthz", "", http.StatusOK}, {"/readyz", "", http.StatusOK}, {"/metrics", "", http.StatusUnauthorized},
	} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.dashboard+ask.path, nil)
		if err != nil {
			return "", err
		}
		if ask.password != "" {
			req.SetBasicAuth("admin", ask.password)
		}
		got, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		text, err := io.ReadAll(got.Body)
		if err = errors.Join(err, got.Body.Close()); err != nil {
			return "", err
		}
		if got.StatusCode != ask.want {
			return "", fmt.Errorf("%s (log-in: %t) answers %s, not %d", ask.path, ask.password != "", got.Status, ask.want)
		}
		if ask.path == "/" && (strings.Contains(string(text), s.set) != (ask.want == http.StatusOK)) {
			return "", fmt.Errorf("with %s the overview shows the set %s: %t", got.Status, s.set, ask.want != http.StatusOK)
		}
	}
	where, err := s.docker(ctx, "inspect", "--format", `{{range $p, $b := .NetworkSettings.Ports}}{{range $b}}{{.HostIp}} {{end}}{{end}}`, id)
	if err != nil || strings.TrimSpace(where) != "127.0.0.1" {
		return "", errors.Join(err, fmt.Errorf("published on %s", where))
	}
	return "401 without a log-in, 200 and the set with one, on loopback only", nil
}

// schedule gives the running scheduler a plan that is due within the minute, and sees its
// run made.
func (s *stack) schedule(ctx context.Context) (string, error) {
	scheduler, err := s.one(ctx, s.site, "scheduler")
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(s.config)
	if err != nil {
		return "", err
	}
	with := strings.Replace(string(text), "\nschedules:\n", "\nschedules:\n  - {name: proof, cron: \"* * * * *\"}\n", 1)
	if err := os.WriteFile(s.config, []byte(with), 0o644); err != nil { // in place: the container has this very file
		return "", err
	}
	var plans []struct {
		Plan string `json:"plan"`
		Last *struct {
			Result string `json:"result"`
			Run    string `json:"run"`
		} `json:"last"`
	}
	opened := ""
	if err := await(ctx, 2*time.Minute, func() error {
		out, err := s.docker(ctx, "exec", scheduler, "producer", "schedule", "list", "--json")
		if err != nil {
			return err
		}
		plans = nil
		if err := json.Unmarshal([]byte(out), &plans); err != nil {
			return err
		}
		for _, p := range plans {
			if p.Plan == "proof" && p.Last != nil && p.Last.Result == "opened" {
				opened = p.Last.Run
				return nil
			}
		}
		return fmt.Errorf("no tick has opened a run: %s", out)
	}); err != nil {
		return "", err
	}
	if err := os.WriteFile(s.config, text, 0o644); err != nil { // or there is one more each minute
		return "", err
	}
	_, err = s.awaitRun(ctx, scheduler, opened)
	return "run " + opened + " was opened by the scheduler and succeeded", err
}

// takeDown removes both projects and their images, and finds nothing of them left.
func (s *stack) takeDown(ctx context.Context) (string, error) {
	var errs []error
	for _, p := range []project{s.fresh, s.site} {
		_, err := s.compose(ctx, p, "down", "-v", "--remove-orphans", "-t", "20")
		errs = append(errs, err)
		for _, list := range [][]string{{"ps", "-a", "-q"}, {"volume", "ls", "-q"}, {"network", "ls", "-q"}} {
			out, err := s.docker(ctx, append(list, "--filter", "label=com.docker.compose.project="+p.name)...)
			if err != nil || strings.TrimSpace(out) != "" {
				errs = append(errs, err, fmt.Errorf("docker %s after down -v: %q", strings.Join(list, " "), out))
			}
		}
	}
	if out, err := s.docker(ctx, "images", "-q", s.image()); err == nil && strings.TrimSpace(out) != "" {
		_, err := s.docker(ctx, "rmi", s.image(), strings.Replace(s.image(), ":", "-example:", 1))
		errs = append(errs, err)
	}
	errs = append(errs, os.Remove(s.config))
	return "no container, volume or network is left", errors.Join(errs...)
}
