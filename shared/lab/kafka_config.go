package lab

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
)

func checksum(s string) uint32 { return crc32.ChecksumIEEE([]byte(s)) }

// properties writes server.properties for a new broker, and sets where it is to be
// found. The small numbers make it start in some two seconds, after kill -9 too:
// a restarted broker waits for its own old session to end.
func (k *kafka) properties(b *Broker, o KafkaOptions) (string, error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	controller, err := freePort()
	if err != nil {
		return "", err
	}
	b.Brokers = []string{fmt.Sprintf("127.0.0.1:%d", port)}
	protocol := "PLAINTEXT"
	switch {
	case o.TLS && len(o.Users) > 0:
		protocol = "SASL_SSL"
	case o.TLS:
		protocol = "SSL"
	case len(o.Users) > 0:
		protocol = "SASL_PLAINTEXT"
	}
	super := []string{"User:ANONYMOUS", "User:" + adminName}
	for _, u := range o.Users {
		if u.Super {
			super = append(super, "User:"+u.Name)
		}
	}
	lines := []string{
		"process.roles=broker,controller",
		"node.id=1",
		fmt.Sprintf("controller.quorum.voters=1@127.0.0.1:%d", controller),
		fmt.Sprintf("listeners=%s://127.0.0.1:%d,CONTROLLER://127.0.0.1:%d", protocol, port, controller),
		fmt.Sprintf("advertised.listeners=%s://127.0.0.1:%d", protocol, port),
		"controller.listener.names=CONTROLLER",
		fmt.Sprintf("listener.security.protocol.map=CONTROLLER:PLAINTEXT,%[1]s:%[1]s", protocol),
		"inter.broker.listener.name=" + protocol,
		"log.dirs=" + property(b.DataDir),
		"offsets.topic.replication.factor=1",
		"offsets.topic.num.partitions=1",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",
		"transaction.state.log.num.partitions=1",
		"group.initial.rebalance.delay.ms=0",
		"broker.heartbeat.interval.ms=100",
		"broker.session.timeout.ms=1000",
		"log.cleaner.dedupe.buffer.size=2097152",
		"num.network.threads=2",
		"num.io.threads=2",
		"background.threads=2",
		"auto.create.topics.enable=false",
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=" + property(strings.Join(super, ";")),
	}
	if o.TLS {
		auth := "none"
		if o.ClientAuth {
			auth = "required"
		}
		lines = append(lines,
			"ssl.keystore.type=PEM", "ssl.keystore.location="+property(b.Certificates.ServerBundle),
			"ssl.truststore.type=PEM", "ssl.truststore.location="+property(b.Certificates.CAFile),
			"ssl.client.auth="+auth)
	}
	if len(o.Users) > 0 {
		lines = append(lines, saslProperties(strings.ToLower(protocol), *b.Admin, o.Users)...)
	}
	return strings.Join(append(lines, o.Extra...), "\n") + "\n", nil
}

// saslProperties gives the settings of the logins. SCRAM users are added to the running
// broker.
func saslProperties(listener string, admin User, users []User) []string {
	const plainModule = "org.apache.kafka.common.security.plain.PlainLoginModule"
	const scramModule = "org.apache.kafka.common.security.scram.ScramLoginModule"
	logins := fmt.Sprintf("%s required username=%s password=%s user_%s=%[3]s", plainModule, quote(admin.Name), quote(admin.Password), admin.Name)
	for _, u := range users {
		if u.Mechanism == "PLAIN" {
			logins += fmt.Sprintf(" user_%s=%s", u.Name, quote(u.Password))
		}
	}
	prefix := "listener.name." + listener + "."
	return []string{
		"sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
		"sasl.mechanism.inter.broker.protocol=PLAIN",
		prefix + "plain.sasl.jaas.config=" + property(logins+";"),
		prefix + "scram-sha-256.sasl.jaas.config=" + scramModule + " required;",
		prefix + "scram-sha-512.sasl.jaas.config=" + scramModule + " required;",
	}
}

// quote writes a string as JAAS has it.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// property writes a value as a Java properties file has it.
func property(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case r < ' ' || r > '~' && r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// format makes the data directory of a new broker, as kafka.tools.StorageTool would
// in 1.2 s: who it is, and the first metadata. One that is there stays.
func (k *kafka) format(dir string) error {
	meta := filepath.Join(dir, "meta.properties")
	if _, err := os.Stat(meta); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	first, err := os.ReadFile(filepath.Join(k.dir, "bootstrap.checkpoint"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bootstrap.checkpoint"), first, 0o600); err != nil {
		return err
	}
	text := fmt.Sprintf("version=1\nnode.id=1\ncluster.id=%s\ndirectory.id=%s\n", uuid(), uuid())
	return os.WriteFile(meta, []byte(text), 0o600)
}

// uuid is 16 random bytes as Kafka writes them. Kafka refuses a leading dash.
func uuid() string {
	for {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails
		if s := base64.RawURLEncoding.EncodeToString(b[:]); s[0] != '-' {
			return s
		}
	}
}
