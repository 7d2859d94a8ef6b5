package health

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/lab"

	"github.com/stretchr/testify/require"
)

// called runs the verb with its exit code and output.
func called(t *testing.T, asJSON bool, places []Place, args ...string) (int, string, error) {
	t.Helper()
	var out bytes.Buffer
	var names []string
	for _, p := range places {
		names = append(names, p.Process)
	}
	cmd := Command("producer", &out, func() bool { return asJSON }, func() ([]Place, error) { return places, nil }, names...)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(ctx)
	return exit.Code(err), out.String(), err
}

func TestVerb(t *testing.T) {
	full := atomic.Bool{}
	h := newHealth(t, lab.Redis(t), Options{Now: stepping(), Live: []Check{{Name: "main loop", Do: func(context.Context) error { return nil }}},
		Ready: []Check{{Name: "disk", Do: func(context.Context) error {
			if full.Load() {
				return errors.New("full\x1b[31m")
			}
			return nil
		}}}})
	require.NoError(t, h.Start("0.0.0.0:0", "worker.listen"))
	at := []Place{{Process: "scheduler", Key: "schedule.listen", Address: h.Address()}, {Process: "dashboard", Key: "dashboard.listen"}}

	code, out, err := called(t, false, at)
	require.NoError(t, err)
	require.Equal(t, 0, code)
	require.Equal(t, "ok   main loop\n", out)
	code, out, _ = called(t, false, at, "scheduler", "--ready")
	require.Equal(t, 0, code)
	require.Equal(t, "ok   redis\nok   disk\n", out)

	full.Store(true)
	code, out, err = called(t, false, at, "--ready")
	require.Equal(t, 1, code)
	require.Equal(t, "exit code 1", err.Error(), "the lines say it all")
	require.Equal(t, "ok   redis\nBAD  disk: full\\u001b[31m\n", out, "nothing reaches the terminal but text")
	code, out, _ = called(t, true, at, "--ready")
	require.Equal(t, 1, code)
	var a Answer
	require.NoError(t, json.Unmarshal([]byte(out), &a))
	require.Equal(t, Answer{Address: h.Address(), Asked: "ready", Checks: []string{"ok   redis", "BAD  disk: full\x1b[31m"}}, a)

	code, _, err = called(t, false, at, "dashboard")
	require.Equal(t, 2, code)
	require.EqualError(t, err, "the configuration: dashboard.listen: is not set, so there is nobody to ask; set it to HOST:PORT and start the process again")
	code, _, err = called(t, false, at, "worker")
	require.Equal(t, 2, code)
	require.ErrorContains(t, err, `there is no process "worker" to ask; name one of scheduler, dashboard`)
	h.Shutdown()
	code, out, err = called(t, false, at)
	require.Equal(t, 1, code)
	require.Empty(t, out)
	require.EqualError(t, err, "ask "+h.Address()+": connection refused; is the process running?")
}

func TestVerbMeetsStrangers(t *testing.T) {
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	_, err := Ask(ctx, stranger.Listener.Addr().String(), false, true)
	require.ErrorContains(t, err, "it answers 404 Not Found; that is no process of catalog-backup")

	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	short, cancel := context.WithTimeout(ctx, askLimit/100)
	defer cancel()
	_, err = Ask(short, l.Addr().String(), false, false)
	require.ErrorContains(t, err, "no answer within")

	h := newHealth(t, lab.Redis(t), Options{})
	encrypted := httptest.NewTLSServer(h)
	defer encrypted.Close()
	a, err := Ask(ctx, encrypted.Listener.Addr().String(), true, true)
	require.NoError(t, err)
	require.True(t, a.Healthy)
	_, err = Ask(ctx, strings.TrimPrefix(encrypted.URL, "https://"), false, true)
	require.Error(t, err)
}

func TestReachable(t *testing.T) {
	for listened, asked := range map[string]string{":9464": "127.0.0.1:9464", "0.0.0.0:1": "127.0.0.1:1", "[::]:1": "[::1]:1", "host1:2": "host1:2", "[::1]:3": "[::1]:3", "odd": "odd"} {
		require.Equal(t, asked, reachable(listened))
	}
}
