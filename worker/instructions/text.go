package instructions

import (
	"fmt"
	"strings"
	"time"

	"catalog-backup/shared/set"
)

// most bounds each list of the text; the manifest has all.
const most = 500

// Text says in plain words what the set holds, what a restore needs, and each command.
func Text(m *set.Manifest) []byte {
	p := &page{}
	id := set.ID(m.Set)
	title := "How to restore backup set " + m.Set
	fmt.Fprintf(&p.b, "%s\n%s\n\n", title, strings.Repeat("=", len(title)))
	alone := "it needs no other set"
	if m.Parent != nil {
		alone = "it needs set " + *m.Parent + ", too"
	}
	p.say("Set %s of instance %s (catalog version %s) was made by %s %s on %s. It is a %s backup: %s. This page and the script beside it are in the main archive, too:",
		m.Set, m.Instance, m.CatalogVersion, m.Program.Name, m.Program.Version, m.Finished.UTC().Format(time.RFC3339), m.Type, alone)
	p.command("tar xzf %s %s %s", id.MainName(), set.TextEntry, set.ScriptEntry)
	p.blank()
	p.say("In short, with the program catalog-backup and with nothing but the files:")
	p.command("worker restore %s --target /EMPTY/DIRECTORY", id.ManifestName())
	p.command("bash %s /EMPTY/DIRECTORY", id.ScriptName())
	p.holds(m)
	p.needed(m)
	p.withProgram(m)
	p.byHand(m)
	p.server(m)
	p.events(m)
	p.service(m)
	return []byte(p.b.String())
}

func (p *page) holds(m *set.Manifest) {
	id := set.ID(m.Set)
	p.head("1. What the set holds")
	p.say("Sizes are in bytes, names of facts as in the manifest.")
	p.fact(id.MainName(), "")
	p.fact("", "PostgreSQL and the application's files")
	if has(m, "eventbus") {
		p.fact(id.EventBusName(), "")
		p.fact("", "the Event Bus")
	}
	p.fact(id.ManifestName(), "")
	p.fact("", "the manifest: the sizes and SHA-256 of all. Its copy is the last entry of each archive, %s", set.ManifestCopy)
	p.postgres(m.Postgres)
	p.files(m.Files)
	p.bus(m.EventBus)
	p.list("Not in the set:", len(m.NotCovered), func(i int) { p.item("%s", m.NotCovered[i]) })
	p.list("Warnings of the backup:", len(m.Warnings), func(i int) { p.item("%s", m.Warnings[i]) })
	p.list("Notes of the backup:", len(m.Notes), func(i int) { p.item("%s", m.Notes[i]) })
}

// list writes the first of n things below a title; nothing where there is none.
func (p *page) list(title string, n int, one func(i int)) {
	if n == 0 {
		return
	}
	p.blank()
	p.say("%s", title)
	for i := range min(n, most) {
		one(i)
	}
	if n > most {
		p.item("and %d more: the manifest names them", n-most)
	}
}

func (p *page) postgres(x *set.Postgres) {
	if x == nil {
		return
	}
	p.blank()
	p.say("PostgreSQL, as a repository of %s %s, %s and %s of the main archive:", x.Tool.Name, x.Tool.Version, set.PostgresRepo, set.PostgresConfig)
	p.fields(fieldsOf(x, "tool", "wal"))
}

func (p *page) files(x *set.Files) {
	if x == nil {
		return
	}
	p.blank()
	p.say("The application's files, %s of the main archive, by their absolute paths:", set.FilesPrefix)
	p.fields(fieldsOf(x, "entries"))
}

func (p *page) bus(x *set.EventBus) {
	if x == nil {
		return
	}
	p.blank()
	p.say("The Event Bus, %s of its archive, as Kafka log segments:", set.EventBusPrefix)
	p.fields(fieldsOf(x, "tool", "topics", "groups", "acls", "discarded"))
	p.fact("consumer groups", "%d", len(x.Groups))
	p.list("Its topics:", len(x.Topics), func(i int) {
		t := x.Topics[i]
		var records, bytes int64
		gaps := ""
		for _, q := range t.Partitions {
			records, bytes = records+q.Records, bytes+q.Bytes
			if len(q.Gaps) > 0 {
				gaps = "; offsets are MISSING, see gaps in the manifest"
			}
		}
		p.item("%s: %d partitions, %d records, %d bytes%s", t.Name, len(t.Partitions), records, bytes, gaps)
	})
}

func (p *page) needed(m *set.Manifest) {
	n := needOf(m)
	p.head("2. What a restore needs")
	p.item("Room: at most %d bytes below the target (PostgreSQL %d, files %d, Event Bus %d).", n.all(), n.postgres, n.files, n.eventbus)
	p.item("GNU tar, gzip, sha256sum, awk, bash.")
	if x := m.Postgres; x != nil {
		v := major(x)
		p.item("PostgreSQL %d, which is the only major version that can start this database (it was %s). Debian and Ubuntu: apt-get install postgresql-%d, from https://apt.postgresql.org where the system has another. Red Hat and its like: dnf install postgresql%d-server, from https://yum.postgresql.org.", v, x.ServerVersion, v, v)
		p.item("pgBackRest %s or newer: apt-get install pgbackrest, or dnf install pgbackrest.", x.Tool.Version)
		p.item("The packages of the extensions that the databases use, and the locales (locale -a).")
		p.item("Where the C library (glibc) or ICU is of another version than on the original host, texts may sort in another way, and indexes on them be wrong: REINDEX DATABASE in each database before anybody writes.")
	}
}

func (p *page) withProgram(m *set.Manifest) {
	id := set.ID(m.Set)
	p.head("3. With catalog-backup")
	p.say("It needs neither Redis nor a configuration. Verify reads every byte of the set; restore verifies first, and refuses a target that is not empty:")
	p.command("worker verify %s", id.ManifestName())
	p.command("worker restore %s --target /EMPTY/DIRECTORY", id.ManifestName())
	p.say("One part alone (there are: %s):", strings.Join(m.Parts(), ", "))
	p.command("worker restore %s --target /EMPTY/DIRECTORY --only %s", id.ManifestName(), append(m.Parts(), "files")[0])
	if has(m, "eventbus") {
		p.say("The events into a broker:")
		p.command("worker restore %s --target /EMPTY/DIRECTORY --only eventbus --bus HOST:PORT", id.ManifestName())
	}
}

func (p *page) byHand(m *set.Manifest) {
	id := set.ID(m.Set)
	p.head("4. With nothing but the files")
	p.say("The script checks the archives' SHA-256, unpacks them, has pgBackRest restore the database, and prints the line that starts the server. It writes below the target only. Run it as root, or as the account that will run PostgreSQL:")
	p.command("bash %s /EMPTY/DIRECTORY", id.ScriptName())
	p.say("One part alone, or what is left where an archive is lost:")
	p.command("bash %s /EMPTY/DIRECTORY %s", id.ScriptName(), append(m.Parts(), "files")[0])
	p.say("Out of the archive, where the script itself is lost:")
	p.command("tar xzf %s %s", id.MainName(), set.ScriptEntry)
	p.command("bash %s /EMPTY/DIRECTORY", set.ScriptEntry)
	p.say("It is plain bash, and each of its steps can be typed instead. The SHA-256 are in the manifest:")
	p.command("grep -A12 '\"archives\"' %s", id.ManifestName())
	p.command("sha256sum %s_alation_*.tar.gz", m.Set)
}

func (p *page) server(m *set.Manifest) {
	x := m.Postgres
	if x == nil {
		return
	}
	p.head("5. The restored server")
	p.say("Both ways make a server that keeps to itself: it listens on a socket in the target only, on port 5432, archives nothing, applies no subscription, and takes its WAL (%s to %s) from the target. The script puts a minimal configuration into place of the original, which stays beside it as *.original, and that from outside the data directory in unpacked/%s.", x.StartWAL, x.StopWAL, set.PostgresConfig)
	p.say("The start and psql lines are printed at the end. The server recovers by itself, and server.log tells of it; it is ready when select pg_is_in_recovery() says f.")
	p.blank()
	p.say("Before it takes over, and gets its old configuration back, in each database:")
	p.item("subscriptions (select * from pg_subscription): ALTER SUBSCRIPTION name DISABLE; ALTER SUBSCRIPTION name SET (slot_name = NONE). Otherwise it takes over the original's slot, and the original loses changes.")
	p.item("scheduled work (pg_cron, foreign servers, background workers): look at it before their libraries are loaded again.")
	p.item("archive_command and primary_conninfo in the old configuration: it must not write into the original's archive.")
}

func (p *page) events(m *set.Manifest) {
	if !has(m, "eventbus") {
		return
	}
	p.head("6. The Event Bus by hand")
	p.say("The best way is worker restore with --bus: it makes every record readable and moves the consumer positions to the same records; offsets change where a topic had holes or did not begin at 0. By hand the offsets stay. Without it: create each topic with its number of partitions, one replica and retention.ms=-1, stop the broker, and, in unpacked/eventbus, with its log directory in LOG_DIR:")
	for _, line := range strings.Split(LoadSegments, "\n") {
		p.command("%s", line)
	}
	p.transactions(m)
	p.say("Give the files to the broker's account and start it. Then the consumer groups (groups in the manifest) get their positions by kafka-consumer-groups.sh --reset-offsets, topics their configs by kafka-configs.sh, access rules by kafka-acls.sh. To look into a segment: kafka-dump-log.sh --deep-iteration --print-data-log --files SEGMENT")
}

// transactions warns of topics that hang if their segments are copied.
func (p *page) transactions(m *set.Manifest) {
	var list []string
	for i := range m.EventBus.Topics {
		if t := &m.EventBus.Topics[i]; t.HasTransactions() {
			list = append(list, t.Name)
		}
	}
	if len(list) == 0 {
		p.say("No topic of this set is known to have records of transactions.")
		return
	}
	more := ""
	if n := len(list) - 50; n > 0 {
		list, more = list[:50], fmt.Sprintf(" and %d more: those with transactional_batches or control_batches_dropped in the manifest", n)
	}
	p.say("This does not do for topics with records of transactions: the segments have no commit markers, so that the broker takes the transactions for open, and consumers with isolation.level=read_committed wait at the first of them for ever. All records in the segments are committed. Do not abort those transactions: that would hide the records. Load these topics by worker restore with --bus, or let their consumers use isolation.level=read_uncommitted: %s%s", strings.Join(list, ", "), more)
}

// LoadSegments brings unpacked segments into a stopped broker of Apache Kafka.
const LoadSegments = `for dir in topics/*/*; do
  partition=$(basename "$(dirname "$dir")")-$(basename "$dir")
  find "$LOG_DIR/$partition" -type f ! -name partition.metadata -delete
  cp "$dir"/*.log "$LOG_DIR/$partition"/
done
rm -f "$LOG_DIR/.kafka_cleanshutdown"`

func (p *page) service(m *set.Manifest) {
	p.head("7. Into service")
	p.say("In this order, with the catalog stopped and the machine off the network until the end, since restored jobs and notifications act in the name of the original:")
	p.item("start PostgreSQL once in the target, so that it recovers; stop it; move it into its place and give it its configuration.")
	if has(m, "files") {
		p.item("copy each configured path from files/ of the target (unpacked/files/ by the script) into its place, with cp -a.")
	}
	if has(m, "eventbus") {
		p.item("load the events.")
	}
	p.item("install the catalog's software, version %s, and start it.", m.CatalogVersion)
	p.item("rebuild the search index; if the host's name changed, set the catalog's URL and the addresses of SSO, mail and connectors.")
	p.item("make a new backup.")
}
