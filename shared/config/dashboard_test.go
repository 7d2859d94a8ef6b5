package config

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheDashboardsKeys(t *testing.T) {
	c := parse(t, `instance: c
dashboard:
  listen: [127.0.0.1:1, "[::1]:2", ":3"]
  hosts: [backup.example]
  username: ops
  password: `+secret+`
  token: t-`+secret+`
  tls: {cert_file: /c.pem, key_file: /k.pem}
  allow_actions: true
  max_age: 50h
`)
	require.Equal(t, Dashboard{Listen: []string{"127.0.0.1:1", "[::1]:2", ":3"}, Hosts: []string{"backup.example"}, Auth: "on", Username: "ops",
		Password: secret, Token: "t-" + secret, CertFile: "/c.pem", KeyFile: "/k.pem", AllowActions: true, MaxAge: 50 * time.Hour}, c.Dashboard)
	require.NoError(t, c.ForDashboard())
	require.Equal(t, "*** and t-***", c.Mask(secret+" and t-"+secret))
	one := parse(t, "instance: c\ndashboard.listen: '0.0.0.0:8980'\n")
	require.Equal(t, []string{"0.0.0.0:8980"}, one.Dashboard.Listen)
}

// Nobody is let in by a configuration that forgot to say who may, and nobody else
// than the dashboard is kept from running by it.
func TestWhoMayRunADashboard(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "dashboard.password: is missing, and so is dashboard.token: nobody could log in; set dashboard.password_file",
		"dashboard: {token: x}":    "",
		"dashboard: {password: x}": "",
		"dashboard: {password: x, username: 'a:b'}":            "dashboard.username: is empty or holds a colon",
		"dashboard: {auth: off}":                               "",
		"dashboard: {auth: off, listen: ['[::1]:1']}":          "",
		"dashboard: {auth: off, listen: ['localhost:1']}":      "",
		"dashboard: {auth: off, listen: ['127.8.9.1:1']}":      "",
		"dashboard: {auth: off, listen: '0.0.0.0:8980'}":       "dashboard.auth: it is off, and dashboard.listen has 0.0.0.0:8980, which others can reach; listen on 127.0.0.1 only",
		"dashboard: {auth: off, listen: ['127.0.0.1:1',':1']}": "which others can reach",
		"dashboard: {auth: off, listen: ['host.example:1']}":   "which others can reach",
		"dashboard: {password: x, tls: {cert_file: /c}}":       "dashboard.tls.key_file: cert_file and key_file belong together; set both, or neither",
		"dashboard.password_file: /nonexistent/p":              "dashboard.password_file: cannot read the secret",
	} {
		c := parse(t, "instance: c\nversion: '1'\npostgres.dsn: x\n"+text+"\n")
		require.NoError(t, c.ForWorker(), text)
		err := c.ForDashboard()
		if want == "" {
			require.NoError(t, err, text)
			continue
		}
		require.ErrorContains(t, err, want, text)
		var e *Error
		require.ErrorAs(t, err, &e)
	}
}

func TestMistakesOfTheDashboard(t *testing.T) {
	for text, want := range map[string]string{
		"dashboard: {listen: 8980}":                  `"8980" is not an address`,
		"dashboard: {listen: ['http://x:1']}":        "is not an address",
		"dashboard: {listen: ['h:99999']}":           "has no valid port",
		"dashboard: {listen: []}":                    "no address is given",
		"dashboard: {hosts: ['https://x']}":          "is not a host name",
		"dashboard: {hosts: ['x:1']}":                "is not a host name",
		"dashboard: {auth: maybe}":                   `"maybe" is not one of on, off`,
		"dashboard: {max_age: 0s}":                   "is not a duration",
		"dashboard: {password: a, password_file: b}": "",
	} {
		_, err := Parse("/etc/c.yaml", []byte("instance: c\n"+text+"\n"), nothing)
		require.ErrorContains(t, err, want, text)
	}
}

func TestTheDashboardsPasswordFromAFile(t *testing.T) {
	p := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(p, []byte(secret+"\n"), 0o600))
	c := parse(t, "instance: c\ndashboard.password_file: "+p+"\n")
	require.Equal(t, secret, c.Dashboard.Password)
}
