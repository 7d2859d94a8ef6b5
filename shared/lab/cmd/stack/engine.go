package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stack is the example under a name of its own, and what the steps hand on.
type stack struct {
	site, fresh project
	env         []string
	config      string // the copy of the configuration
	dashboard   string // where it listens on this host, HOST:PORT
	set         string // the set that was made
	made        int    // how many sets were
}

// project is one compose project.
type project struct {
	name string
	file string
}

// prepare sets what compose gets beside our own environment: names and a port that clash
// with nothing that runs here, and a copy of the configuration that a step may change.
func (s *stack) prepare(name string) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	s.dashboard = fmt.Sprintf("127.0.0.1:%d", port)
	given, err := os.ReadFile("docs/compose/config.yaml")
	if err != nil {
		return err
	}
	if s.config, err = filepath.Abs(".cache/lab/" + name + ".yaml"); err != nil {
		return err
	}
	if err := os.WriteFile(s.config, given, 0o644); err != nil {
		return err
	}
	if err := os.Chmod(s.config, 0o644); err != nil { // whatever the umask: the worker is another user
		return err
	}
	version := os.Getenv("VERSION")
	if !versionRE.MatchString(version) {
		version = name
	}
	s.env = append(os.Environ(), "VERSION="+version, "CONFIG="+s.config, "DUMP_VOLUME="+name+"_dump", "DASHBOARD_PORT="+strconv.Itoa(port))
	return nil
}

// versionRE is what serves as the tag of an image.
var versionRE = regexp.MustCompile(`^[\w][\w.-]{0,127}$`)

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// call runs a program and gives what it wrote to stdout. Its stderr becomes part of the error.
func (s *stack) call(ctx context.Context, name string, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env, &out, &errs
	// A group of its own: Ctrl-C is ours to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLines(out.String()+errs.String(), 15))
	}
	return out.String(), nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func (s *stack) docker(ctx context.Context, args ...string) (string, error) {
	return s.call(ctx, "docker", args...)
}

// compose calls docker-compose or, where COMPOSE says so, `docker compose`.
func (s *stack) compose(ctx context.Context, p project, args ...string) (string, error) {
	program := strings.Fields(os.Getenv("COMPOSE"))
	if len(program) == 0 {
		program = []string{"docker-compose"}
	}
	args = append([]string{"-p", p.name, "-f", p.file}, args...)
	return s.call(ctx, program[0], append(program[1:], args...)...)
}

// containers gives the ids of a service's containers, ended ones too; of all services with "".
func (s *stack) containers(ctx context.Context, p project, service string) ([]string, error) {
	args := []string{"ps", "-a", "-q", "--no-trunc", "--filter", "label=com.docker.compose.project=" + p.name}
	if service != "" {
		args = append(args, "--filter", "label=com.docker.compose.service="+service)
	}
	out, err := s.docker(ctx, args...)
	return strings.Fields(out), err
}

// one is the only container of a service.
func (s *stack) one(ctx context.Context, p project, service string) (string, error) {
	ids, err := s.containers(ctx, p, service)
	if err != nil || len(ids) == 1 {
		return strings.Join(ids, ""), err
	}
	return "", fmt.Errorf("%s has %d containers, not one", service, len(ids))
}

// await asks until the answer is nil, each half second, for at most `limit`.
func await(ctx context.Context, limit time.Duration, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", limit, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// healthy waits until every container of a project is healthy, or has ended well where it
// is one that ends.
func (s *stack) healthy(ctx context.Context, p project) (string, error) {
	var states []string
	err := await(ctx, 3*time.Minute, func() error {
		ids, err := s.containers(ctx, p, "")
		if err != nil || len(ids) == 0 {
			return errors.Join(err, errors.New("no containers"))
		}
		format := `{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{.State.ExitCode}} {{with .State.Health}}{{.Status}}{{end}}`
		out, err := s.docker(ctx, append([]string{"inspect", "--format", format}, ids...)...)
		if err != nil {
			return err
		}
		states = nil
		for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
			f := append(strings.Fields(line), "", "")
			switch {
			case f[1] == "running" && f[3] == "healthy":
			case f[1] == "exited" && f[2] == "0" && (f[0] == "prepare" || f[0] == "seed"):
			default:
				return fmt.Errorf("%s", strings.TrimSpace(line))
			}
			states = append(states, f[0])
		}
		return nil
	})
	return fmt.Sprintf("%d containers healthy or done", len(states)), err
}

// tellLogs prints what the containers said last, for one who has to find out what was wrong.
func (s *stack) tellLogs(ctx context.Context) {
	for _, p := range []project{s.site, s.fresh} {
		ids, _ := s.containers(ctx, p, "")
		for _, id := range ids {
			name, _ := s.docker(ctx, "inspect", "--format", "{{.Name}} {{.State.Status}} {{.State.ExitCode}} {{json .State.Health}}", id)
			cmd := exec.CommandContext(ctx, "docker", "logs", "--tail", "15", id)
			cmd.Env = s.env
			said, _ := cmd.CombinedOutput()
			fmt.Fprintf(os.Stderr, "--- %s%s\n", name, said)
		}
	}
}
