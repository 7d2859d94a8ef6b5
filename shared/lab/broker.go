package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// User is somebody who may log in at a broker.
type User struct {
	Mechanism string // PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
	Name      string
	Password  string
	Super     bool // is above the access control lists
}

// mechanism makes the client's side of a user's login.
func (u User) mechanism() sasl.Mechanism {
	switch u.Mechanism {
	case "SCRAM-SHA-256":
		return scram.Auth{User: u.Name, Pass: u.Password}.AsSha256Mechanism()
	case "SCRAM-SHA-512":
		return scram.Auth{User: u.Name, Pass: u.Password}.AsSha512Mechanism()
	default:
		return plain.Auth{User: u.Name, Pass: u.Password}.AsMechanism()
	}
}

// Broker is a server of the Kafka protocol: kfake or Apache Kafka.
type Broker struct {
	Brokers []string // addresses to start from
	Root    string   // the folder of it all
	DataDir string   // its data: for Apache Kafka one folder per partition
	Admin   *User    // who probes and administers; nil without SASL

	Certificates *Certificates // nil without TLS

	name  string
	root  *root
	proc  *process
	spawn func() (*process, error)
	probe func(context.Context, *kgo.Client) error
	dump  func(file string) (string, error)
}

// ClientOpts gives what a client needs to reach the broker, as Admin where it asks
// for a login.
func (b *Broker) ClientOpts() []kgo.Opt {
	if b.Admin == nil {
		return b.ClientOptsFor(User{})
	}
	return b.ClientOptsFor(*b.Admin)
}

// ClientOptsFor is ClientOpts with another login; a user without a name has none.
func (b *Broker) ClientOptsFor(u User) []kgo.Opt {
	opts := []kgo.Opt{kgo.SeedBrokers(b.Brokers...)}
	if b.Certificates != nil {
		opts = append(opts, kgo.DialTLSConfig(b.Certificates.clientTLS()))
	}
	if u.Name != "" {
		opts = append(opts, kgo.SASL(u.mechanism()))
	}
	return opts
}

// Client makes a client as Admin; the caller closes it.
func (b *Broker) Client(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append(b.ClientOpts(), opts...)...)
}

// Start starts the broker on its data, at the same address, and returns when it
// serves.
func (b *Broker) Start() error {
	if b.proc.running() {
		return fmt.Errorf("lab: %s runs already", b.name)
	}
	proc, err := b.spawn()
	if err != nil {
		return err
	}
	b.proc = proc
	if err := proc.ready(b.serves); err != nil {
		return errors.Join(err, proc.end(syscall.SIGKILL))
	}
	return nil
}

// serves probes once with a client of its own: one that met a starting broker
// backs off for too long.
func (b *Broker) serves() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := b.Client(kgo.RequestRetries(0), kgo.RecordRetries(0), kgo.RetryTimeout(2*time.Second), kgo.DialTimeout(time.Second))
	if err != nil {
		return err
	}
	defer c.Close()
	return b.probe(ctx, c)
}

// probeMetadata is enough for kfake, which is ready as soon as it listens.
func probeMetadata(ctx context.Context, c *kgo.Client) error {
	_, err := kadm.NewClient(c).BrokerMetadata(ctx)
	return err
}

// Kill9 kills the broker; Start brings it back on the same data and address.
func (b *Broker) Kill9() error { return b.proc.end(syscall.SIGKILL) }

// Shutdown ends the broker gently; Start brings it back.
func (b *Broker) Shutdown() error { return b.proc.end(syscall.SIGTERM) }

// Stop freezes the broker: connections stay open, nothing answers. Cont ends that.
func (b *Broker) Stop() error { return b.proc.signal(syscall.SIGSTOP) }

// Cont lets a frozen broker go on.
func (b *Broker) Cont() error { return b.proc.signal(syscall.SIGCONT) }

// Close ends the broker and removes a throwaway directory.
func (b *Broker) Close() error {
	return errors.Join(b.proc.end(syscall.SIGKILL), b.root.remove())
}

// PID is the broker's process number.
func (b *Broker) PID() int { return b.proc.pid() }

// LogTail gives the end of the broker's log.
func (b *Broker) LogTail() string { return tail(b.log()) }

func (b *Broker) log() string { return filepath.Join(b.Root, "broker.log") }
