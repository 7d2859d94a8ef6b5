package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"regexp"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"

	"github.com/stretchr/testify/require"
)

var readyRE = regexp.MustCompile(`url="(http://127\.0\.0\.1:\d+)/`)

// serve starts the verb and gives the address at which it answers.
func (s *site) serve(conf string) (*running, string) {
	s.t.Helper()
	b, err := os.ReadFile(s.config)
	require.NoError(s.t, err)
	require.NoError(s.t, os.WriteFile(s.config, append(b, conf...), 0o600))
	p := s.launch("dashboard")
	p.until(&p.err, "the dashboard is ready")
	m := readyRE.FindStringSubmatch(p.err.String())
	require.NotNil(s.t, m, p.err.String())
	return p, m[1]
}

func fetch(t *testing.T, url, user, password string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	require.NoError(t, err)
	if user != "" {
		r.SetBasicAuth(user, password)
	}
	answer, err := (&http.Client{Timeout: patience}).Do(r)
	require.NoError(t, err)
	defer func() { _ = answer.Body.Close() }()
	b, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.NotContains(t, string(b), secret)
	return answer.StatusCode, string(b)
}

func TestDashboardServesUntilItIsStopped(t *testing.T) {
	s := newSite(t, "requirepass right-"+secret)
	s.configure("redis:\n  address: unix:" + s.redis.Addr + "\n  password: right-" + secret + "\n")
	p, url := s.serve("dashboard: {listen: '127.0.0.1:0', password: " + secret + "}\n")
	status, _ := fetch(t, url+"/", "", "")
	require.Equal(t, http.StatusUnauthorized, status)
	status, body := fetch(t, url+"/", "admin", secret)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "No live worker serves instance catalog")
	status, body = fetch(t, url+"/asynqmon/api/redis_info", "admin", secret)
	require.Equal(t, http.StatusOK, status, "asynqmon has the password of Redis too")
	require.Contains(t, body, s.redis.Addr)
	status, body = fetch(t, url+"/metrics", "admin", secret)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "catalog_backup_redis_up 1")
	for _, path := range []string{"/healthz", "/readyz"} {
		status, _ = fetch(t, url+path, "", "")
		require.Equal(t, http.StatusOK, status)
	}
	require.NoError(t, s.redis.Shutdown())
	status, body = fetch(t, url+"/", "admin", secret)
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Contains(t, body, "check redis in "+s.config)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.Zero(t, p.wait().code)
}

func TestDashboardShowsPlans(t *testing.T) {
	s := newSite(t)
	_, url := s.serve("schedules: [{name: nightly, cron: '0 2 * * *', timezone: Europe/Berlin}, {name: proof, cron: '@weekly', job: verify}]\n" +
		"dashboard: {listen: '127.0.0.1:0', auth: off}\n")
	require.Zero(t, s.do("schedule", "pause", "proof").code)
	store := schedule.NewStore(s.rdb, "catalog", time.Now)
	id := "20261123t020000z-abcdefgh"
	_, err := store.Note(context.Background(), "nightly", schedule.Tick{At: time.Now().Add(-time.Hour), Result: schedule.Opened, Run: &id})
	require.NoError(t, err)
	_, body := fetch(t, url+"/", "", "")
	for _, want := range []string{"0 2 * * *", "Europe/Berlin", "full backup", "paused by ", "/runs/" + id, "No live scheduler serves instance catalog"} {
		require.Contains(t, body, want)
	}
	require.NoError(t, store.SignIn(context.Background(), schedule.Scheduler{ID: "a", Host: "h"}, nil))
	_, body = fetch(t, url+"/", "", "")
	require.Contains(t, body, "1 live scheduler")
	require.NotContains(t, body, "No live scheduler")
	require.NoError(t, s.store.SignIn(context.Background(), "other", run.Worker{ID: "w", Node: "n"}))
	_, body = fetch(t, url+"/instances/other", "", "")
	require.Contains(t, body, "The plans of other stand in its own configuration")
}

// A file that became unusable is said on the page, without what stands in it.
func TestDashboardTellsOfAnUnusableConfiguration(t *testing.T) {
	s := newSite(t)
	_, url := s.serve("schedules: [{name: nightly, cron: '0 2 * * *'}]\ndashboard: {listen: '127.0.0.1:0', auth: off}\n")
	_, body := fetch(t, url+"/", "", "")
	require.NotContains(t, body, "cannot be used any more")
	good, err := os.ReadFile(s.config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.config, append(good, "queue: {retry_errors: geheim-4711}\n"...), 0o600))
	require.Equal(t, exit.Usage, s.do("schedule", "list").code)
	status, body := fetch(t, url+"/", "", "")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "The configuration of instance catalog cannot be used any more")
	require.Contains(t, body, "nightly", "the plans that it knew are shown")
	require.NotContains(t, body, "geheim-4711")
	require.NoError(t, os.WriteFile(s.config, good, 0o600))
	_, body = fetch(t, url+"/", "", "")
	require.NotContains(t, body, "cannot be used any more")
}

func TestDashboardWithoutALogIn(t *testing.T) {
	s := newSite(t)
	p, url := s.serve("dashboard: {listen: '127.0.0.1:0', auth: off}\n")
	status, _ := fetch(t, url+"/", "", "")
	require.Equal(t, http.StatusOK, status)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGINT))
	require.Zero(t, p.wait().code)
}

func TestDashboardRefusals(t *testing.T) {
	s := newSite(t)
	base, err := os.ReadFile(s.config)
	require.NoError(t, err)
	for conf, want := range map[string]string{
		"": "dashboard.password: is missing, and so is dashboard.token: nobody could log in; set dashboard.password_file to a file with the password; or, to look from this machine only and without a log-in, dashboard.auth: off",
		"dashboard: {auth: off, listen: '0.0.0.0:0'}\n":                             "dashboard.auth: it is off, and dashboard.listen has 0.0.0.0:0, which others can reach",
		"dashboard: {password: " + secret + ", listen: '192.0.2.7:1'}\n":            "dashboard.listen: cannot listen on 192.0.2.7:1",
		"dashboard: {password: " + secret + ", tls: {cert_file: /a, key_file: /b}}": "dashboard.tls.cert_file: ",
		"dashboard: {password_file: /nonexistent/p}\n":                              "dashboard.password_file: cannot read the secret",
	} {
		require.NoError(t, os.WriteFile(s.config, append(append([]byte{}, base...), conf...), 0o600))
		r := s.do("dashboard")
		require.Equal(t, exit.Usage, r.code, "%s: %s", conf, r.err)
		require.Contains(t, r.err, want)
		require.NotEqual(t, exit.Usage, s.do("status").code, "nobody else minds")
	}
	require.Equal(t, exit.Usage, s.do("dashboard", "x").code)
}

func TestDashboardWarnsOfExposure(t *testing.T) {
	s := newSite(t)
	b, err := os.ReadFile(s.config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.config, append(b, "dashboard: {listen: '0.0.0.0:0', password: short}\n"...), 0o600))
	p := s.launch("dashboard", "--json")
	p.until(&p.err, "the dashboard is ready")
	require.Contains(t, p.err.String(), "WITHOUT TLS")
	require.Contains(t, p.err.String(), "dashboard.password has fewer than 12 characters")
	require.NotContains(t, p.err.String(), "short\"")
}
