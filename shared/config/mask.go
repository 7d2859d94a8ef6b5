package config

import (
	"net/url"
	"regexp"
	"strings"
)

// dsnPassword finds the password in a DSN of key=value pairs, quoted or not.
var dsnPassword = regexp.MustCompile(`(?i)\bpassword\s*=\s*('(?:[^'\\]|\\.)*'|\S+)`)

// secrets are all values that must not be shown.
func (c *Config) secrets() []string {
	s := []string{c.Redis.Password, c.Postgres.Password, c.EventBus.SASL.Password, c.Dashboard.Password, c.Dashboard.Token}
	for _, m := range dsnPassword.FindAllStringSubmatch(c.Postgres.DSN, -1) {
		s = append(s, m[1], strings.Trim(m[1], "'"))
	}
	if u, err := url.Parse(c.Postgres.DSN); err == nil && u.User != nil {
		if p, ok := u.User.Password(); ok {
			s = append(s, p, url.QueryEscape(p), url.PathEscape(p))
		}
	}
	return s
}

// Mask replaces every secret in a text by stars.
func (c *Config) Mask(text string) string {
	for _, s := range c.secrets() {
		if len(s) > 2 { // a shorter one would star half the text, and tells nothing there
			text = strings.ReplaceAll(text, s, "***")
		}
	}
	return text
}
