package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Dashboard is the web page and who may see it.
type Dashboard struct {
	Listen       []string // HOST:PORT; an empty host is every address
	Hosts        []string // names that browsers may use; none: see Loopback
	Auth         string   // on or off
	Username     string
	Password     string
	Token        string
	CertFile     string
	KeyFile      string
	AllowActions bool
	MaxAge       time.Duration // of the newest good set, before the page warns
}

// Loopback tells whether a listening address HOST:PORT is reached from this machine
// only. A name other than localhost is not looked up: it counts as reached from outside.
func Loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// ForDashboard checks what only the dashboard needs. Nobody else is kept from
// running by it.
func (c *Config) ForDashboard() error {
	if c.forDashboard != nil {
		return c.forDashboard
	}
	bad := func(key, problem, remedy string) error {
		return &Error{File: c.Path, Key: key, Problem: problem, Remedy: remedy}
	}
	d := c.Dashboard
	if (d.CertFile == "") != (d.KeyFile == "") {
		return bad("dashboard.tls.key_file", "cert_file and key_file belong together", "set both, or neither")
	}
	if d.Auth == "off" {
		for _, a := range d.Listen {
			if !Loopback(a) {
				return bad("dashboard.auth", fmt.Sprintf("it is off, and dashboard.listen has %s, which others can reach", a),
					"listen on 127.0.0.1 only, or set dashboard.auth: on and dashboard.password_file")
			}
		}
		return nil
	}
	if d.Password == "" && d.Token == "" {
		return bad("dashboard.password", "is missing, and so is dashboard.token: nobody could log in",
			"set dashboard.password_file to a file with the password; or, to look from this machine only and without a log-in, dashboard.auth: off")
	}
	if d.Password != "" && (d.Username == "" || strings.Contains(d.Username, ":")) {
		return bad("dashboard.username", "is empty or holds a colon, which HTTP basic authentication cannot carry", "choose another name")
	}
	return nil
}

const kindAddresses = "HOST:PORT, or a list of them"

// addresses takes one listening address or several.
func addresses(f func(*Config) *[]string) func(*Config, value) error {
	return func(c *Config, v value) error {
		all := v.list
		if all == nil {
			all = splitList(v.text)
		}
		if len(all) == 0 {
			return errors.New("no address is given")
		}
		for _, a := range all {
			host, port, err := net.SplitHostPort(a)
			if err != nil || strings.ContainsAny(host, "/@ ") {
				return fmt.Errorf("%q is not an address", a)
			}
			if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
				return fmt.Errorf("%q has no valid port", a)
			}
		}
		*f(c) = all
		return nil
	}
}

// hostName checks a name as browsers send it in the Host header, without port.
func hostName(name string) error {
	if strings.ContainsAny(name, "/@ *") || strings.Contains(name, ":") && net.ParseIP(strings.Trim(name, "[]")) == nil {
		return fmt.Errorf("%q is not a host name: write it without scheme and port", name)
	}
	return nil
}
