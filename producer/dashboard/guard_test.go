package dashboard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
)

// everything is a path of each kind that must be seen by nobody without a log-in.
var everything = []string{"/", "/instances/catalog", "/runs/x", "/sets/catalog/x", "/static/live.js", "/asynqmon/", "/asynqmon/api/queues", "/asynqmon/static/js/runtime-main.9fea6c1a.js",
	"/metrics", "/nothing", "/asynqmon", "//", "/%2e%2e/"}

func nobody(r *http.Request) { r.Header.Del("Authorization") }
func with(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}
func basic(user, pass string) func(*http.Request) {
	return func(r *http.Request) { r.SetBasicAuth(user, pass) }
}

func TestNothingWithoutALogIn(t *testing.T) {
	s := newSite(t, func(o *Options) { o.AllowActions = true })
	run := s.open("catalog", set.Full)
	for _, path := range everything {
		for name, change := range map[string]func(*http.Request){"nobody": nobody, "wrong password": basic("admin", "x"), "wrong user": basic("root", secret),
			"empty": basic("", ""), "empty password": basic("admin", ""), "token as password": basic("admin", "token-"+secret), "wrong token": with("Authorization", "Bearer x"),
			"password as token": with("Authorization", "Bearer "+secret), "no token": with("Authorization", "Bearer "), "another scheme": with("Authorization", "Digest x"),
			"junk": with("Authorization", "Basic !!!"), "longer": basic("admin", secret+"x"), "shorter": basic("admin", secret[1:])} {
			status, body, header := s.get(path, change)
			if status == http.StatusTemporaryRedirect || status == http.StatusMovedPermanently { // net/http cleans the path first
				continue
			}
			require.Equal(t, http.StatusUnauthorized, status, "%s by %s", path, name)
			require.Equal(t, []string{`Basic realm="catalog-backup", charset="UTF-8"`, `Bearer realm="catalog-backup"`}, header.Values("WWW-Authenticate"))
			require.NotContains(t, body, run.ID)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"} {
		status, _, _ := s.ask(method, "/instances/catalog/backups", nobody)
		require.Equal(t, http.StatusUnauthorized, status, method)
	}
}

func TestWhoMayLogIn(t *testing.T) {
	s := newSite(t)
	for _, change := range []func(*http.Request){basic("admin", secret), with("Authorization", "Bearer token-"+secret), with("Authorization", "bearer token-"+secret)} {
		status, _, _ := s.get("/", change)
		require.Equal(t, http.StatusOK, status)
	}
	only := newSite(t, func(o *Options) { o.Password = "" })
	status, _, header := only.get("/", basic("admin", ""))
	require.Equal(t, http.StatusUnauthorized, status, "no password is not the empty password")
	require.Equal(t, []string{`Bearer realm="catalog-backup"`}, header.Values("WWW-Authenticate"))
	other := newSite(t, func(o *Options) { o.Token = "" })
	status, _, _ = other.get("/", with("Authorization", "Bearer "))
	require.Equal(t, http.StatusUnauthorized, status, "no token is not the empty token")
	open := newSite(t, func(o *Options) { o.Open, o.Password, o.Token = true, "", "" })
	status, body, _ := open.get("/", nobody)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "no log-in")
}

// A failed log-in waits longer each time; a good one never waits, and too many at once
// are turned away.
func TestFailedLogInsAreSlowedDown(t *testing.T) {
	s := newSite(t)
	var mu sync.Mutex
	var waits []time.Duration
	hold := make(chan struct{})
	arrived := make(chan struct{}, 100)
	s.s.guard.wait = func(_ context.Context, d time.Duration) {
		mu.Lock()
		waits = append(waits, d)
		n := len(waits)
		mu.Unlock()
		if n > 6 {
			arrived <- struct{}{}
			<-hold
		}
	}
	for range 6 {
		status, _, _ := s.get("/", basic("admin", "wrong"))
		require.Equal(t, http.StatusUnauthorized, status)
	}
	require.Equal(t, []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 4 * time.Second}, waits)
	status, _, _ := s.get("/", nobody)
	require.Equal(t, http.StatusUnauthorized, status)
	require.Len(t, waits, 6, "a browser's first question is no failed log-in")
	require.Contains(t, s.log.String(), "a log-in failed")
	require.NotContains(t, s.log.String(), "wrong")

	var all sync.WaitGroup
	for range maxWaiting {
		all.Go(func() {
			r, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.base+"/", nil)
			r.SetBasicAuth("admin", "wrong")
			if answer, err := http.DefaultClient.Do(r); err == nil {
				_ = answer.Body.Close()
			}
		})
	}
	for range maxWaiting {
		<-arrived
	}
	status, _, header := s.get("/", basic("admin", "wrong"))
	require.Equal(t, http.StatusTooManyRequests, status)
	require.NotEmpty(t, header.Get("Retry-After"))
	status, _, _ = s.get("/")
	require.Equal(t, http.StatusOK, status, "who has the password is let in whatever others do")
	close(hold)
	all.Wait()
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	s := newSite(t)
	for _, path := range everything {
		for _, change := range []func(*http.Request){nobody, func(*http.Request) {}} {
			_, _, h := s.get(path, change)
			require.Equal(t, "DENY", h.Get("X-Frame-Options"), path)
			require.Equal(t, "nosniff", h.Get("X-Content-Type-Options"))
			require.Equal(t, "same-origin", h.Get("Referrer-Policy"))
			require.Contains(t, h.Get("Content-Security-Policy"), "frame-ancestors 'none'")
			require.Contains(t, h.Get("Content-Security-Policy"), "default-src 'none'")
			require.Empty(t, h.Get("Access-Control-Allow-Origin"))
			if !strings.Contains(path, "/static/") {
				require.Equal(t, "no-store", h.Get("Cache-Control"), path)
			}
		}
	}
	_, _, h := s.get("/")
	require.NotContains(t, h.Get("Content-Security-Policy"), "unsafe")
	_, _, h = s.get("/asynqmon/")
	script, _, _ := strings.Cut(strings.SplitAfter(h.Get("Content-Security-Policy"), "script-src ")[1], ";")
	require.NotContains(t, script, "unsafe", "its inline scripts are allowed one by one")
	require.Equal(t, 2, strings.Count(script, "sha256-"))
}

// A page of another name that a name server points at us is not answered.
func TestNamesOfTheHost(t *testing.T) {
	host := func(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }
	s := newSite(t)
	for name, want := range map[string]int{"localhost": 200, "localhost:8980": 200, "127.0.0.1": 200, "127.8.8.8:1": 200, "[::1]:8980": 200, "LOCALHOST.": 200,
		"evil.example": 421, "evil.example:8980": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example": 421, "192.0.2.7": 421} {
		status, _, _ := s.get("/", host(name))
		require.Equal(t, want, status, name)
	}
	named := newSite(t, func(o *Options) { o.Hosts = []string{"Backup.example"} })
	for name, want := range map[string]int{"backup.example": 200, "BACKUP.example:443": 200, "localhost": 200, "evil.example": 421} {
		status, _, _ := named.get("/", host(name))
		require.Equal(t, want, status, name)
	}
	g := newGuard(Options{Hosts: []string{"backup.example"}})
	outside := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1}
	require.True(t, g.expects("backup.example", outside))
	require.False(t, g.expects("192.0.2.7", outside))
	require.True(t, newGuard(Options{}).expects("any.example", outside), "beyond loopback any name goes, unless names are configured")
}

func TestOtherSitesMayNotPost(t *testing.T) {
	s := newSite(t, func(o *Options) { o.AllowActions = true })
	r := s.claim(s.open("catalog", set.Full).ID)
	for _, change := range []func(*http.Request){with("Sec-Fetch-Site", "cross-site"), with("Sec-Fetch-Site", "same-site"), with("Origin", "https://evil.example"), with("Origin", "null")} {
		status, _, _ := s.ask(http.MethodPost, "/runs/"+r.ID+"/cancel", change)
		require.Equal(t, http.StatusForbidden, status)
	}
	require.False(t, s.reload(r.ID).Cancel)
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	certs, err := lab.NewCertificates(dir, time.Now())
	require.NoError(t, err)
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	put := func(from *lab.Certificates) {
		for to, name := range map[string]string{cert: from.ServerFile, key: from.ServerKeyFile} {
			b, err := os.ReadFile(name)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(to, b, 0o600))
			require.NoError(t, os.Chtimes(to, time.Now(), time.Now().Add(time.Duration(len(b))*time.Second))) // however coarse the clock of the file system is
		}
	}
	put(certs)
	s := newSite(t, func(o *Options) { o.CertFile, o.KeyFile = cert, key })
	require.True(t, strings.HasPrefix(s.base, "https://"))
	ask := func(ca string, change func(*tls.Config)) error {
		pem, err := os.ReadFile(ca)
		require.NoError(t, err)
		c := &tls.Config{RootCAs: x509.NewCertPool()}
		c.RootCAs.AppendCertsFromPEM(pem)
		if change != nil {
			change(c)
		}
		transport := &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}
		answer, err := (&http.Client{Transport: transport, Timeout: patience}).Get(s.base + "/")
		if err != nil {
			return err
		}
		require.Equal(t, http.StatusUnauthorized, answer.StatusCode)
		return answer.Body.Close()
	}
	require.NoError(t, ask(certs.CAFile, nil))
	require.Error(t, ask(certs.CAFile, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11; c.MinVersion = tls.VersionTLS10 }), "TLS below 1.2 is refused")
	renewed, err := lab.NewCertificates(t.TempDir(), time.Now())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(cert, []byte("half"), 0o600))
	require.NoError(t, ask(certs.CAFile, nil), "a certificate that is being replaced leaves the old one in use")
	put(renewed)
	require.NoError(t, os.Chtimes(cert, time.Now(), time.Now().Add(time.Hour)))
	require.NoError(t, ask(renewed.CAFile, nil), "a renewed certificate needs no restart")
	require.Error(t, ask(certs.CAFile, nil))

	_, err = New(Options{CertFile: "/nonexistent/c.pem", KeyFile: key, Queues: s.o.Queues, Now: time.Now, Log: s.o.Log, Path: "/etc/c.yaml"})
	var bad *config.Error
	require.ErrorAs(t, err, &bad)
	require.Equal(t, "dashboard.tls.cert_file", bad.Key)
}

func TestAnAddressInUse(t *testing.T) {
	s := newSite(t)
	taken := strings.TrimPrefix(s.base, "http://")
	o := s.o
	o.Listen = []string{"127.0.0.1:0", taken}
	other, err := New(o)
	require.NoError(t, err)
	err = other.Start()
	var bad *config.Error
	require.ErrorAs(t, err, &bad)
	require.Equal(t, "dashboard.listen", bad.Key)
	require.Contains(t, err.Error(), taken)
	require.Contains(t, err.Error(), "address already in use")
	_, err = net.Dial("tcp", other.sockets[0].Addr().String())
	require.Error(t, err, "none is open when one cannot be had")
	require.NoError(t, other.Shutdown(ctx))
}
