package eventbus

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

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"catalog-backup/worker/stage"
)

// client is one connection to a bus.
type client struct {
	*kgo.Client
	adm *kadm.Client
	o   Options
}

// maxMessage bounds one request or answer; a batch larger than this cannot be handled.
const maxMessage = 1 << 30

// connect logs in. Requests that are no fetches or produces are retried for
// patience by the client library.
func connect(ctx context.Context, o Options, patience time.Duration) (*client, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	opts := []kgo.Opt{
		kgo.SeedBrokers(o.Brokers...), kgo.ClientID(o.ClientID),
		kgo.DialTimeout(5 * time.Second), kgo.RetryTimeout(patience), kgo.RequestRetries(1 << 20),
		kgo.RetryBackoffFn(backoff), kgo.MetadataMinAge(50 * time.Millisecond),
		kgo.BrokerMaxReadBytes(maxMessage), kgo.BrokerMaxWriteBytes(maxMessage),
	}
	if o.TLS != nil {
		c, err := o.TLS.config()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.DialTLSConfig(c))
	}
	if s := o.SASL; s != nil {
		auth := scram.Auth{User: s.Username, Pass: s.Password}
		switch s.Mechanism {
		case Plain:
			opts = append(opts, kgo.SASL(plain.Auth{User: s.Username, Pass: s.Password}.AsMechanism()))
		case ScramSHA256:
			opts = append(opts, kgo.SASL(auth.AsSha256Mechanism()))
		case ScramSHA512:
			opts = append(opts, kgo.SASL(auth.AsSha512Mechanism()))
		}
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, stage.Permanentf("eventbus: the connection's settings are refused: %w", err)
	}
	c := &client{Client: cl, adm: kadm.NewClient(cl), o: o}
	if err := c.login(ctx, patience); err != nil {
		cl.Close()
		return nil, err
	}
	return c, nil
}

// config loads the PEM files.
func (t *TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.InsecureSkipVerify}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, stage.Permanentf("eventbus: cannot read the certificate authority file: %w; correct eventbus.tls", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, stage.Permanentf("eventbus: %s holds no PEM certificate; correct eventbus.tls", t.CAFile)
		}
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, stage.Permanentf("eventbus: cannot load the client certificate %s: %w; correct eventbus.tls", t.CertFile, err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// backoff waits 100 ms, 200 ms … and never more than a second.
func backoff(try int) time.Duration {
	return min(time.Duration(max(try, 1))*100*time.Millisecond, time.Second)
}

// pause waits as long as backoff says, or until ctx ends.
func pause(ctx context.Context, try int) error {
	t := time.NewTimer(backoff(try))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// login asks each configured broker in turn until one answers. It goes around
// the client library's retries, so that a wrong password is told at once and
// not after the time that a dead broker is given.
func (c *client) login(ctx context.Context, patience time.Duration) error {
	began := time.Now()
	refused := 0
	for try := 1; ; try++ {
		var last error
		for _, b := range c.SeedBrokers() {
			req := kmsg.NewPtrMetadataRequest()
			req.Topics = []kmsg.MetadataRequestTopic{}
			_, err := b.Request(ctx, req)
			if err == nil {
				return nil
			}
			if ctx.Err() != nil {
				return fmt.Errorf("eventbus: connecting to %s: %w", names(c.o.Brokers), context.Cause(ctx))
			}
			if last == nil || !stage.IsPermanent(last) {
				last = c.explain(err)
			}
			var eof *kgo.ErrFirstReadEOF
			if errors.As(err, &eof) || (c.o.SASL != nil || c.o.TLS != nil) && strings.Contains(err.Error(), "EOF") {
				refused++
			}
		}
		if stage.IsPermanent(last) {
			return last
		}
		// Brokers that close instead of answering: a broker that is just ending does so
		// once, a refused login or the wrong kind of listener each time.
		if refused >= 3*len(c.SeedBrokers()) {
			return stage.Permanentf("eventbus: %s close the connection instead of answering: the user name or password is wrong, or the listener expects other TLS or SASL settings; correct eventbus.tls and eventbus.sasl (%w)",
				names(c.o.Brokers), last)
		}
		if time.Since(began) > patience {
			remedy := "start the bus or correct eventbus.brokers"
			if c.o.TLS != nil { // a listener without TLS may wait for the rest of what it takes for a request
				remedy += ", or remove eventbus.tls if the listener has no TLS"
			}
			return fmt.Errorf("eventbus: no broker of %s could be reached within %s: %w; %s", names(c.o.Brokers), patience, last, remedy)
		}
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// explain says in people's words why a request failed, and marks what no retry mends.
func (c *client) explain(err error) error {
	var (
		unknownCA x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		noTLS     tls.RecordHeaderError
		op        *net.OpError
	)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return stage.Permanentf("eventbus: login %s was refused: the user name or password is wrong; correct eventbus.sasl (%w)", c.o.SASL, err)
	case errors.Is(err, kerr.UnsupportedSaslMechanism), errors.Is(err, kerr.IllegalSaslState):
		return stage.Permanentf("eventbus: the broker does not take the login %v: %w; correct eventbus.sasl", c.o.SASL, err)
	case errors.As(err, &unknownCA):
		return stage.Permanentf("eventbus: the broker's certificate is signed by an unknown authority; set eventbus.tls to the right certificate authority file (%w)", err)
	case errors.As(err, &hostname), errors.As(err, &invalid):
		return stage.Permanentf("eventbus: the broker's certificate is not valid for it: %w; correct the certificate or eventbus.tls", err)
	case errors.As(err, &noTLS):
		return stage.Permanentf("eventbus: the broker does not speak TLS on this port: %w; correct eventbus.brokers or remove eventbus.tls", err)
	case errors.As(err, &op) && op.Op == "remote error": // crypto/tls has no public type for an alert
		return stage.Permanentf("eventbus: the broker ended the TLS handshake: %w; correct the client certificate in eventbus.tls", err)
	case isDenied(err):
		return stage.Permanentf("eventbus: not allowed: %w; grant the user READ and DESCRIBE_CONFIGS on Topic *, DESCRIBE on Group *, DESCRIBE on Cluster", err)
	}
	return fmt.Errorf("eventbus: %w", err)
}

// isDenied tells whether a broker refused for want of a right.
func isDenied(err error) bool {
	return errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.GroupAuthorizationFailed) ||
		errors.Is(err, kerr.ClusterAuthorizationFailed) || errors.Is(err, kerr.TransactionalIDAuthorizationFailed)
}

// metadata asks for the named topics (none: all) and the rights on them, past
// the library's cache.
func (c *client) metadata(ctx context.Context, topics ...string) (kadm.Metadata, error) {
	md, err := c.adm.Metadata(kadm.WithAuthorizedOps(ctx), topics...)
	if err != nil {
		return md, fmt.Errorf("reading the bus's topics: %w", c.explain(err))
	}
	return md, nil
}

// brokerVersion guesses the brokers' release from what they offer, "" if it cannot.
func (c *client) brokerVersion(ctx context.Context) string {
	resp, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, c.Client)
	if err != nil {
		return ""
	}
	return kversion.FromApiVersionsResponse(resp).VersionGuess()
}
