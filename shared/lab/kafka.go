package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// KafkaOptions says what Apache Kafka StartKafka starts. The zero value is the
// pinned version, one node, plain text, with access control lists on and everyone
// who is not logged in above them.
type KafkaOptions struct {
	Dir        string   // where it lives; "" = a throwaway directory, removed by Close
	Version    string   // "" = the one that .ci/kafka pins
	Extra      []string // further lines of server.properties; they win over ours
	JVM        []string // further arguments of java; they win over ours (-Xmx256m -XX:TieredStopAtLevel=1)
	TLS        bool     // certificates are made; see Broker.Certificates
	ClientAuth bool     // with TLS: clients must show a certificate
	Users      []User   // logins; any turns SASL on. Broker.Admin is one of ours
}

// adminName is the login that the lab makes for itself where a broker asks for one.
const adminName = "lab-admin"

// Kafka starts a throwaway Apache Kafka that ends with the test.
func Kafka(t testing.TB, o KafkaOptions) *Broker {
	t.Helper()
	b, err := StartKafka(o)
	if err != nil {
		t.Fatal(err)
	}
	bind(t, "Kafka", b)
	return b
}

// StartKafka starts an Apache Kafka.
func StartKafka(o KafkaOptions) (*Broker, error) {
	k, err := findKafka(o.Version)
	if err != nil {
		return nil, err
	}
	if err := k.share(); err != nil {
		return nil, err
	}
	return k.start(o, "-XX:SharedArchiveFile="+k.shared)
}

// kafka is an installed version.
type kafka struct {
	version   string
	java      string
	dir       string // as .ci/kafka printed it
	classPath string
	shared    string // archive of loaded classes (Java's class data sharing)
}

// findKafka runs .ci/kafka, which gets the version if it is not there.
func findKafka(version string) (*kafka, error) {
	top, err := checkout()
	if err != nil {
		return nil, err
	}
	java, err := program("java")
	if err != nil {
		return nil, err
	}
	if java, err = filepath.EvalSymlinks(java); err != nil {
		return nil, err
	}
	args := []string{filepath.Join(top, ".ci", "kafka")}
	if version != "" {
		args = append(args, version)
	}
	cmd := exec.Command("bash", args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("lab: get Apache Kafka: %w: %s", err, strings.TrimSpace(errs.String()))
	}
	k := &kafka{version: version, java: java, dir: strings.TrimSpace(out.String())}
	jars, err := filepath.Glob(filepath.Join(k.dir, "libs", "*.jar"))
	if err != nil || len(jars) == 0 {
		return nil, fmt.Errorf("lab: no jars in %s/libs: remove that folder, it is fetched again", k.dir)
	}
	sort.Strings(jars) // the archive of classes holds for one order only
	k.classPath = strings.Join(jars, ":")
	// The archive holds for one Java only, which its release file names.
	release, _ := os.ReadFile(filepath.Join(filepath.Dir(java), "..", "release"))
	k.shared = filepath.Join(k.dir, fmt.Sprintf("classes-%08x.jsa", checksum(string(release)+k.classPath)))
	return k, nil
}

// share makes the archive of classes by running a broker once: it halves the start
// and the memory of every later one.
func (k *kafka) share() error {
	unlock, err := lockFile(filepath.Join(k.dir, "classes.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(k.shared); err == nil {
		return nil
	}
	part := k.shared + ".part"
	b, err := k.start(KafkaOptions{}, "-XX:ArchiveClassesAtExit="+part)
	if err != nil {
		return err
	}
	if err := errors.Join(b.Shutdown(), b.Close()); err != nil {
		return err
	}
	if err := os.Rename(part, k.shared); err != nil {
		return fmt.Errorf("lab: java made no archive of classes: %w; its log ends with:\n%s", err, b.LogTail())
	}
	return nil
}

// start makes a broker and starts it.
func (k *kafka) start(o KafkaOptions, sharing string) (_ *Broker, err error) {
	b := &Broker{name: "Apache Kafka", probe: probeWrite}
	if b.root, err = newRoot(o.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.root.remove())
		}
	}()
	b.Root = b.root.dir
	b.DataDir = filepath.Join(b.Root, "data")
	if o.TLS {
		if b.Certificates, err = NewCertificates(filepath.Join(b.Root, "tls"), time.Now()); err != nil {
			return nil, err
		}
	}
	if len(o.Users) > 0 {
		secret := make([]byte, 16)
		_, _ = rand.Read(secret) // never fails
		b.Admin = &User{Mechanism: "PLAIN", Name: adminName, Password: hex.EncodeToString(secret), Super: true}
	}
	properties := filepath.Join(b.Root, "server.properties")
	text, err := k.properties(b, o)
	if err != nil {
		return nil, err
	}
	if err = os.WriteFile(properties, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if err = k.format(b.DataDir); err != nil {
		return nil, err
	}
	b.spawn = func() (*process, error) {
		args := append([]string{"-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", sharing}, o.JVM...)
		cmd := exec.Command(k.java, append(args, "-cp", k.classPath, "kafka.Kafka", properties)...)
		cmd.Dir, cmd.Env = b.Root, environment()
		return spawn(cmd, b.log(), syscall.SIGKILL)
	}
	b.dump = k.dumpLogSegments
	if err = b.Start(); err != nil {
		return nil, err
	}
	if err = b.addSCRAM(o.Users); err != nil {
		return nil, errors.Join(err, b.proc.end(syscall.SIGKILL))
	}
	return b, nil
}

// probeWrite is what "ready" means for Apache Kafka: its port is open long before it
// can serve, so a topic is made, written and deleted.
func probeWrite(ctx context.Context, c *kgo.Client) error {
	const topic = "lab-probe"
	admin := kadm.NewClient(c)
	if _, err := admin.CreateTopic(ctx, 1, 1, nil, topic); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return err
	}
	if err := c.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte("probe")}).FirstErr(); err != nil {
		return err
	}
	if _, err := admin.DeleteTopic(ctx, topic); err != nil {
		return err
	}
	// kadm answers from a cache; this must not.
	req := kmsg.NewPtrMetadataRequest()
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = kmsg.StringPtr(topic)
	req.Topics = append(req.Topics, t)
	for ctx.Err() == nil {
		resp, err := req.RequestWith(ctx, c)
		if err != nil {
			return err
		}
		if len(resp.Topics) == 1 && resp.Topics[0].ErrorCode == kerr.UnknownTopicOrPartition.Code {
			return nil
		}
		time.Sleep(pollEvery)
	}
	return fmt.Errorf("the deleted topic %s stays: %w", topic, ctx.Err())
}

// addSCRAM makes the users that log in by SCRAM; PLAIN ones are in the settings.
func (b *Broker) addSCRAM(users []User) error {
	var add []kadm.UpsertSCRAM
	for _, u := range users {
		mechanism := kadm.ScramSha256
		switch u.Mechanism {
		case "SCRAM-SHA-256":
		case "SCRAM-SHA-512":
			mechanism = kadm.ScramSha512
		default:
			continue
		}
		add = append(add, kadm.UpsertSCRAM{User: u.Name, Mechanism: mechanism, Iterations: 4096, Password: u.Password})
	}
	if len(add) == 0 {
		return nil
	}
	c, err := b.Client()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	made, err := kadm.NewClient(c).AlterUserSCRAMs(ctx, nil, add)
	if err == nil {
		err = made.Error()
	}
	if err != nil {
		return fmt.Errorf("lab: add SCRAM users: %w", err)
	}
	return nil
}

// DumpLogSegments has Apache Kafka's own tool read a segment file, record by record,
// and gives what it printed: an independent check of the format.
func (b *Broker) DumpLogSegments(file string) (string, error) {
	if b.dump == nil {
		return "", fmt.Errorf("lab: %s has no DumpLogSegments: start Kafka", b.name)
	}
	return b.dump(file)
}

// DumpLogSegments is Broker.DumpLogSegments without a broker.
func DumpLogSegments(file string) (string, error) {
	k, err := findKafka("")
	if err != nil {
		return "", err
	}
	return k.dumpLogSegments(file)
}

func (k *kafka) dumpLogSegments(file string) (string, error) {
	cmd := exec.Command(k.java, "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-XX:SharedArchiveFile="+k.shared,
		"-cp", k.classPath, "kafka.tools.DumpLogSegments", "--deep-iteration", "--files", file)
	cmd.Env = environment()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("lab: DumpLogSegments of %s: %w: %s", file, err, bytes.TrimSpace(out))
	}
	return string(out), nil
}
