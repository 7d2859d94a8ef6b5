// Package eventbus backs up a bus that speaks Kafka's protocol and loads it
// again. It keeps raw record batches: what the producers compressed and
// summed is stored byte for byte, as Kafka log segments.
//
// Order of a dump: consumer positions (ReadPositions), definitions, start
// offsets, high watermarks (the cut), batches up to the cut, or of a compacted
// partition until it is caught up with (Dump). Verifier checks a set without a broker, Load brings it into one.
package eventbus

import (
	"errors"
	"fmt"
	"net"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"catalog-backup/worker/stage"
)

// Options say how the bus is reached and how it is read.
type Options struct {
	Brokers  []string // HOST:PORT, at least one
	TLS      *TLS     // nil: plaintext
	SASL     *SASL    // nil: no login
	ClientID string

	// AllowGaps makes warnings of what fails a dump otherwise: lost offsets, hidden or
	// unreadable topics, unreadable groups.
	AllowGaps bool
	// AllowGapsIn does the same for the topics that match a name or pattern (path.Match).
	AllowGapsIn []string
	// Include and Exclude choose topics by name or pattern (path.Match). Empty Include
	// takes all.
	Include, Exclude []string

	Parallel     int           // partitions at once, default 4
	FetchBytes   int32         // of one fetch, default 4 MB; a larger batch still comes whole
	SegmentBytes int           // of one segment at most, default 16 MB; a larger batch makes its own
	Budget       time.Duration // how long one partition may be in trouble without a break, default 120 s

	// TransactionWait is how long after the cut a transaction may stay open that was
	// open at the cut. 0: not at all.
	TransactionWait time.Duration

	Now  func() time.Time // default time.Now
	Logf func(format string, args ...any)
}

// TLS names the PEM files of an encrypted connection.
type TLS struct {
	CAFile             string // empty: the system's authorities
	CertFile, KeyFile  string // the client's own certificate, both or none
	ServerName         string
	InsecureSkipVerify bool
}

// SASL mechanisms.
const (
	Plain       = "PLAIN"
	ScramSHA256 = "SCRAM-SHA-256"
	ScramSHA512 = "SCRAM-SHA-512"
)

// SASL is a login.
type SASL struct {
	Mechanism, Username, Password string
}

// String never shows the password.
func (s SASL) String() string { return s.Mechanism + " as " + s.Username }

// GoString never shows the password either.
func (s SASL) GoString() string { return s.String() }

// Validate tells what is wrong with the options; the error is permanent.
func (o Options) Validate() error {
	if len(o.Brokers) == 0 {
		return stage.Permanentf("eventbus: no broker is configured; set eventbus.brokers to HOST:PORT")
	}
	for _, b := range o.Brokers {
		host, port, err := net.SplitHostPort(b)
		if err != nil || host == "" || port == "" {
			return stage.Permanentf("eventbus: broker %q is not HOST:PORT; correct eventbus.brokers", b)
		}
	}
	if o.TLS != nil && (o.TLS.CertFile == "") != (o.TLS.KeyFile == "") {
		return stage.Permanentf("eventbus: a client certificate needs both a certificate file and a key file; set both or none")
	}
	if s := o.SASL; s != nil {
		switch s.Mechanism {
		case Plain, ScramSHA256, ScramSHA512:
		default:
			return stage.Permanentf("eventbus: SASL mechanism %q is not known; use %s, %s or %s", s.Mechanism, Plain, ScramSHA256, ScramSHA512)
		}
		if s.Username == "" || s.Password == "" {
			return stage.Permanentf("eventbus: SASL needs a user name and a password; set both")
		}
	}
	for _, p := range slices.Concat(o.Include, o.Exclude, o.AllowGapsIn) {
		if _, err := path.Match(p, "x"); err != nil {
			return stage.Permanentf("eventbus: topic pattern %q is malformed; correct the lists of topics", p)
		}
	}
	if o.Parallel < 0 || o.FetchBytes < 0 || o.SegmentBytes < 0 || o.Budget < 0 || o.TransactionWait < 0 {
		return stage.Permanentf("eventbus: parallel, fetch size, segment size, budget and the wait for transactions cannot be negative")
	}
	return nil
}

// withDefaults fills in what was left out.
func (o Options) withDefaults() Options {
	if o.ClientID == "" {
		o.ClientID = "catalog-backup"
	}
	if o.Parallel == 0 {
		o.Parallel = 4
	}
	if o.FetchBytes == 0 {
		o.FetchBytes = 4 << 20
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 16 << 20
	}
	if o.Budget == 0 {
		o.Budget = 120 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	return o
}

// topicName is what Kafka accepts as a topic's name
// (org.apache.kafka.common.internals.Topic).
var topicName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,249}$`)

// checkTopicName refuses names that Kafka would refuse and that could not be a
// directory's name.
func checkTopicName(name string) error {
	if !topicName.MatchString(name) || name == "." || name == ".." {
		return fmt.Errorf("topic name %q is not one that Kafka allows", name)
	}
	return nil
}

// internalTopics belong to the brokers themselves and are never dumped.
var internalTopics = map[string]bool{
	"__consumer_offsets": true, "__transaction_state": true, "__share_group_state": true,
	"__cluster_metadata": true, "__remote_log_metadata": true,
}

// wants tells whether a topic is to be dumped.
func (o Options) wants(topic string) bool {
	if internalTopics[topic] {
		return false
	}
	return (len(o.Include) == 0 || matches(o.Include, topic)) && !matches(o.Exclude, topic)
}

// allows tells whether what fails a dump otherwise is a warning for this topic.
func (o Options) allows(topic string) bool { return o.AllowGaps || matches(o.AllowGapsIn, topic) }

// matches tells whether one of the names or patterns is the topic's.
func matches(patterns []string, topic string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := path.Match(p, topic)
		return ok
	})
}

// names joins a list for an error text, cut short after ten.
func names(list []string) string {
	if len(list) > 10 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:10], ", "), len(list)-10)
	}
	return strings.Join(list, ", ")
}

var errNoAnswer = errors.New("the broker's answer is incomplete")
