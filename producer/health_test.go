package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	service "catalog-backup/producer/schedule"
	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/lab"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/task"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSchedulerTellsWhetherItCanWork(t *testing.T) {
	server := lab.Redis(t)
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := "instance: catalog\nredis: {address: 'unix:" + server.Addr + "'}\nschedules:\n  - {name: nightly, cron: '5 2 * * *', timezone: UTC, job: backup, type: full}\n"
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	none := func(string) string { return "" }
	c, err := config.Load(path, none)
	require.NoError(t, err)
	rdb, err := task.Connect(c)
	require.NoError(t, err)
	defer func() { _ = rdb.Close() }()
	v, err := listenForHealth(c, rdb)
	require.NoError(t, err)
	defer v.Shutdown()
	ask := func(path string) (int, string) {
		w := httptest.NewRecorder()
		v.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	waitFor := func(code int, text string) {
		t.Helper()
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			c, body := ask("/readyz")
			assert.Equal(t, code, c)
			assert.Contains(t, body, text)
		}, time.Minute, 50*time.Millisecond)
	}
	waitFor(503, "BAD  plans: the scheduler is starting\n")
	log := logrus.New()
	log.SetOutput(t.Output())
	s := service.New(service.Params{Config: c, Redis: rdb, Clock: service.System{}, Log: log, Who: schedule.Scheduler{ID: "s1"}, FreshEpoch: func() string { return "e" },
		Read:  func() ([]byte, error) { return os.ReadFile(path) },
		Parse: func(text []byte) (*config.Config, error) { return config.Parse(path, text, none) }})
	require.NoError(t, s.Start(context.Background()))
	v.service.Store(s)
	waitFor(200, "ok   redis\nok   plans\n")
	_, metrics := ask("/metrics")
	require.Contains(t, metrics, `catalog_backup_build_info{program="scheduler"`)

	require.NoError(t, server.Kill9())
	waitFor(503, "BAD  redis: ")
	code, _ := ask("/healthz")
	require.Equal(t, 200, code, "the scheduler is not ended for it")
	require.NoError(t, server.Start())
	waitFor(200, "ok   plans\n")
	s.Shutdown()
	waitFor(503, "BAD  plans: the scheduler is stopping\n")
	code, _ = ask("/healthz")
	require.Equal(t, 200, code)
}

func TestSchedulerWhoseAddressIsInUse(t *testing.T) {
	server := lab.Redis(t)
	taken := httptest.NewServer(http.NotFoundHandler())
	defer taken.Close()
	c, err := config.Parse("/c.yaml", []byte("instance: catalog\nredis: {address: 'unix:"+server.Addr+"'}\nschedule.listen: '"+taken.Listener.Addr().String()+"'\n"), func(string) string { return "" })
	require.NoError(t, err)
	rdb, err := task.Connect(c)
	require.NoError(t, err)
	defer func() { _ = rdb.Close() }()
	_, err = listenForHealth(c, rdb)
	require.ErrorContains(t, err, "or set schedule.listen to another one")
	require.Equal(t, exit.Usage, exit.Code(err))
}
