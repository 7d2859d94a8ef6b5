package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/lab"
	"catalog-backup/shared/task"
	"catalog-backup/worker/pipeline"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func configured(t *testing.T, server *lab.RedisServer, text string) *config.Config {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"dump", "temp"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, d), 0o700))
	}
	require.NoError(t, os.WriteFile(filepath.Join(root, "version"), []byte("1.2.3\n"), 0o600))
	c, err := config.Parse(filepath.Join(root, "config.yaml"), []byte("instance: catalog\nnode: node1\nversion_file: "+root+"/version\npostgres: {dsn: 'host=/nowhere password=geheim'}\n"+
		"alation.backup.data_dump_dir: "+root+"/dump\nalation.backup.data_temp_dir: "+root+"/temp\nredis: {address: 'unix:"+server.Addr+"'}\n"+text), func(string) string { return "" })
	require.NoError(t, err)
	return c
}

// ask gives the state and the text of a fresh answer: results are held for a second.
func ask(v *vitals, path string) (int, string) {
	w := httptest.NewRecorder()
	v.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func waitFor(t *testing.T, v *vitals, code int, text string) {
	t.Helper()
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		c, body := ask(v, "/readyz")
		assert.Equal(t, code, c)
		assert.Contains(t, body, text)
	}, time.Minute, 50*time.Millisecond)
}

func TestWorkerTellsWhetherItCanWork(t *testing.T) {
	server := lab.Redis(t)
	c := configured(t, server, "")
	rdb, err := task.Connect(c)
	require.NoError(t, err)
	defer func() { _ = rdb.Close() }()
	v, err := listenForHealth(c, rdb)
	require.NoError(t, err)
	defer v.Shutdown()
	require.Empty(t, v.Address(), "no address, no listener")
	code, text := ask(v, "/healthz")
	require.Equal(t, 200, code)
	require.Equal(t, "ok   main loop\n", text)
	waitFor(t, v, 503, "BAD  signed in: the worker is starting\n")

	log := c.Log.Logger(t.Output())
	w := pipeline.New(params(c, rdb, log), rdb, whoami(c))
	require.NoError(t, w.Start(context.Background()))
	v.worker.Store(w)
	waitFor(t, v, 200, "ok   redis\nok   signed in\nok   configuration\nok   dump directory\nok   temp directory\n")

	moved := c.Backup.DumpDir + ".gone"
	require.NoError(t, os.Rename(c.Backup.DumpDir, moved))
	waitFor(t, v, 503, "BAD  dump directory: "+c.Backup.DumpDir+" (alation.backup.data_dump_dir) cannot be written: no such file or directory")
	require.NoError(t, os.WriteFile(c.Backup.DumpDir, nil, 0o600))
	waitFor(t, v, 503, "cannot be written: not a directory")
	require.NoError(t, os.Remove(c.Backup.DumpDir))
	require.NoError(t, os.Rename(moved, c.Backup.DumpDir))
	waitFor(t, v, 200, "")

	require.NoError(t, os.Rename(c.VersionFile, c.VersionFile+".gone"))
	waitFor(t, v, 503, "BAD  configuration: ")
	require.NoError(t, os.Rename(c.VersionFile+".gone", c.VersionFile))

	require.NoError(t, server.Kill9())
	waitFor(t, v, 503, "BAD  redis: Redis at unix:"+server.Addr+" does not answer: ")
	code, _ = ask(v, "/healthz")
	require.Equal(t, 200, code)
	require.NoError(t, server.Start())
	waitFor(t, v, 200, "ok   signed in\n")

	w.Shutdown()
	waitFor(t, v, 503, "BAD  signed in: the worker is stopping\n")
}

func TestWorkerWhoseAddressIsInUse(t *testing.T) {
	server := lab.Redis(t)
	taken := httptest.NewServer(http.NotFoundHandler())
	defer taken.Close()
	c := configured(t, server, "worker: {listen: '"+taken.Listener.Addr().String()+"'}\n")
	rdb, err := task.Connect(c)
	require.NoError(t, err)
	defer func() { _ = rdb.Close() }()
	_, err = listenForHealth(c, rdb)
	require.ErrorContains(t, err, "address already in use; end the program that has the address, or set worker.listen to another one")
	require.Equal(t, exit.Usage, exit.Code(err))
}
