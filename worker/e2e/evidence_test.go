package e2e

import (
	"encoding/json"
	"errors"
	"html"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
)

// damageReachesThePerson damages a real set, has it verified, and follows the finding's
// words by way of the proof, the list of sets and Redis to whoever looks.
func damageReachesThePerson(t *testing.T, s *site, a answer, damaged []byte) {
	require.NoError(t, os.WriteFile(a.Archives[0], damaged, 0o600))
	var report struct {
		Damage      []set.Damage `json:"damage"`
		DamageTotal int          `json:"damage_total"`
	}
	out, code := s.offline("verify", *a.Manifest, "--json")
	require.Equal(t, exit.Damage, code)
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.NotEmpty(t, report.Damage)
	first := report.Damage[0]
	require.Contains(t, first.Problem, "damaged near byte")

	var shown struct {
		Damage      []set.Damage `json:"damage"`
		DamageTotal int          `json:"damage_total"`
	}
	s.eventually(20*time.Second, "the finding is published", func() bool {
		out, code := s.producer("show", *a.Set, "--json")
		require.Zero(t, code)
		require.NoError(t, json.Unmarshal([]byte(out), &shown))
		return shown.DamageTotal > 0
	})
	require.Equal(t, report.DamageTotal, shown.DamageTotal)
	require.Equal(t, first.Problem, shown.Damage[0].Problem)
	for _, verb := range []string{"list", "show"} {
		args := map[string][]string{"list": {"list"}, "show": {"show", *a.Set}}[verb]
		text, _ := s.producer(args...)
		require.Contains(t, text, first.Problem, verb)
	}
	text, code := s.offline("list", "--dir", s.dump())
	require.Zero(t, code)
	require.Contains(t, text, first.Problem)

	url := s.dashboard()
	for _, page := range []string{"/", "/sets/catalog/" + *a.Set} {
		require.Contains(t, browse(t, url+page), first.Problem, page)
	}
	_, wrong, ok := strings.Cut(browse(t, url+"/sets/catalog/"+*a.Set), "What is wrong")
	require.True(t, ok)
	wrong, _, _ = strings.Cut(wrong, "Facts")
	require.Contains(t, wrong, first.Problem)
	require.Contains(t, browse(t, url+"/metrics"), `catalog_backup_damaged_sets{instance="catalog"} 1`)
}

// offline runs a verb of the worker that needs neither Redis nor a configuration.
func (s *site) offline(args ...string) (string, int) {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(programs, "worker"), args...)
	out, err := cmd.Output()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		s.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// dashboard starts `producer dashboard`, and gives its address.
func (s *site) dashboard() string {
	s.t.Helper()
	text, err := os.ReadFile(s.config.Path)
	require.NoError(s.t, err)
	path := filepath.Join(s.root, "dashboard.yaml")
	require.NoError(s.t, os.WriteFile(path, append(text, "dashboard: {listen: '127.0.0.1:0', auth: off}\n"...), 0o600))
	cmd, log := exec.Command(filepath.Join(programs, "producer"), "dashboard", "--config", path), &lab.Buffer{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(s.t, cmd.Start())
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ready := regexp.MustCompile(`the dashboard is ready.*url="(http://127\.0\.0\.1:\d+)/`)
	var found []string
	s.eventually(20*time.Second, "the dashboard is ready", func() bool {
		found = ready.FindStringSubmatch(log.String())
		return found != nil
	})
	return found[1]
}

// browse gives the text of a page as Chromium has it in the end.
func browse(t *testing.T, url string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cb-chromium-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // its helpers may still write for a moment
	cmd := exec.Command("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+dir, "--timeout=60000", "--dump-dom", url)
	cmd.Env = append(os.Environ(), "HOME="+dir)
	out, err := cmd.Output()
	require.NoError(t, err, "the browser tests need Chromium: .ci/install test")
	return html.UnescapeString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(string(out), ""))
}
