package task

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"catalog-backup/shared/config"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// The client prints remarks of its own on stderr, in a form that is none of ours: in a
// log of JSON lines, and between the lines that a verb shows. What is wrong comes back
// as the error of a call as well.
func init() { redis.SetLogger(silence{}) }

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// Connect makes a client for the configured Redis. Nothing is sent before it is used.
func Connect(c *config.Config) (*redis.Client, error) {
	o, err := options(c)
	if err != nil {
		return nil, err
	}
	return redis.NewClient(o), nil
}

// Connector makes clients as Connect does, for libraries of asynq that want to make
// their own.
func Connector(c *config.Config) (asynq.RedisConnOpt, error) {
	o, err := options(c)
	if err != nil {
		return nil, err
	}
	o.ContextTimeoutEnabled = true
	return connector{o}, nil
}

type connector struct{ options *redis.Options }

// MakeRedisClient is asynq.RedisConnOpt. asynq and asynqmon want a redis.UniversalClient.
func (c connector) MakeRedisClient() any {
	o := *c.options
	return redis.NewClient(&o)
}

func options(c *config.Config) (*redis.Options, error) {
	o := &redis.Options{Network: "unix", Addr: c.RedisSocket(), DialTimeout: 3 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: 5 * time.Second, MaxRetries: 1, PoolSize: 24}
	if c.Redis.Embedded {
		return o, nil
	}
	r := c.Redis
	o.Username, o.Password, o.DB = r.Username, r.Password, r.DB
	if path, ok := strings.CutPrefix(r.Address, "unix:"); ok {
		o.Addr = path
	} else {
		o.Network, o.Addr = "tcp", r.Address
	}
	if r.TLS.Enabled {
		t, err := clientTLS(c, r.TLS, o.Addr)
		if err != nil {
			return nil, err
		}
		o.TLSConfig = t
	}
	return o, nil
}

func clientTLS(c *config.Config, t config.TLS, addr string) (*tls.Config, error) {
	bad := func(key string, err error) error {
		return &config.Error{File: c.Path, Key: key, Problem: err.Error(), Remedy: "name a readable PEM file"}
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if out.ServerName == "" {
		out.ServerName, _, _ = net.SplitHostPort(addr)
	}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, bad("redis.tls.ca_file", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, bad("redis.tls.ca_file", errors.New("it holds no certificate"))
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, bad("redis.tls.cert_file", err)
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

// Where names the Redis for an error message, without secrets.
func Where(c *config.Config) string {
	if c.Redis.Embedded {
		return fmt.Sprintf("the embedded Redis at %s", c.RedisSocket())
	}
	return "Redis at " + c.Redis.Address
}
