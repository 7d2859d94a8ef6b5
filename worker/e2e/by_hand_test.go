package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/instructions"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"golang.org/x/sys/unix"
)

// A set restores without our program, by the script that lies beside it, which uses
// sha256sum, tar and pgBackRest, and the bus comes into Apache Kafka the way
// docs/set-format.md tells it. Everything is compared with the source.
func TestRestoreByHand(t *testing.T) {
	s := newSite(t, 50_000, "")
	space, err := s.pg.Mkdir("space")
	require.NoError(t, err)
	s.pg.Psql("alter system set track_commit_timestamp = on")
	require.NoError(t, s.pg.Stop())
	require.NoError(t, s.pg.Start())
	s.pg.Psql(fmt.Sprintf(`create tablespace "../../../far" location '%s'`, space)) // a name that leads out of the target
	s.pg.Psql(`create table kept_far tablespace "../../../far" as select g, md5(g::text) from generate_series(1, 1000) g`)
	s.pg.Psql("alter system set session_preload_libraries = 'auto_explain'")
	nastyFiles(t, filepath.Join(s.root, "app"))
	s.startWorker()
	a := s.backUp()
	s.termWorker()
	rows := "select count(*), md5(string_agg(body, ',' order by id)), (select md5(string_agg(md5, ',' order by g)) from kept_far), (select pg_xact_commit_timestamp(xmin) from kept_far limit 1) from events"
	want := s.pg.Psql(rows)
	require.Regexp(t, ` \d\d:|\d\d:\d\d`, want)
	files := tree(t, filepath.Join(s.root, "app"))
	delete(files, "left.tmp") // excluded
	records := digests(t, s.bus)
	later, err := s.pg.Mkdir("later")
	require.NoError(t, err)
	s.pg.Psql(fmt.Sprintf("create tablespace later location '%s'", later))
	segment := strings.TrimSpace(s.pg.Psql("select pg_walfile_name(pg_current_wal_insert_lsn())"))
	require.NoError(t, s.pg.Kill9()) // and everything of the source but the set is out of reach
	require.NoError(t, s.bus.Kill9())

	target := filepath.Join(s.root, "new", "by-hand")
	require.NoError(t, os.Mkdir(filepath.Dir(target), 0o755))
	passesOn := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\xd2\x04\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"
	require.NoError(t, unix.Setxattr(filepath.Dir(target), "system.posix_acl_default", []byte(passesOn), 0)) // rwx for user 1234
	said := byHand(t, scriptOf(a), target)
	for _, dir := range []string{target, target + "/unpacked/files", target + "/unpacked/eventbus", target + "/postgres/data"} {
		b := make([]byte, 4096)
		n, err := unix.Llistxattr(dir, b)
		require.NoError(t, err)
		require.NotContains(t, string(b[:n]), "posix_acl", dir)
	}
	startByHand(t, said)
	require.Equal(t, strings.TrimSpace(want), restoredQuery(t, said, rows))
	quiet := map[string]string{"listen_addresses": "", "port": "5432", "archive_mode": "off", "max_logical_replication_workers": "0", "session_preload_libraries": "",
		"shared_preload_libraries": "", "restore_command": "false", "huge_pages": "try", "unix_socket_directories": filepath.Join(target, "postgres/socket")}
	for name, value := range quiet {
		require.Equal(t, value, restoredQuery(t, said, "select current_setting('"+name+"')"), name)
	}
	require.Equal(t, "f", restoredQuery(t, said, "select pg_is_in_recovery()"))
	require.Contains(t, said, "session_preload_libraries = 'auto_explain'")
	require.Equal(t, files, tree(t, filepath.Join(target, "unpacked/files", s.root, "app")))
	require.FileExists(t, filepath.Join(target, "postgres/data/postgresql.conf.original"))
	require.NoFileExists(t, filepath.Join(filepath.Dir(target), "far"))

	m, err := set.ReadManifest(*a.Manifest)
	require.NoError(t, err)
	segmentsByKafkasOwnTool(t, m, filepath.Join(target, "unpacked"))
	require.Equal(t, records, digests(t, loadByHand(t, m, filepath.Join(target, "unpacked"))))

	t.Run("out of the archive alone, as an ordinary user", func(t *testing.T) { byHandFromTheArchive(t, s, a, rows, want) })
	t.Run("parts of what is left", func(t *testing.T) { byHandInParts(t, s, a, files) })
	t.Run("what tar cannot unpack", func(t *testing.T) { byHandBesideTarsFaults(t, a, rows, want) })
	t.Run("nothing leads out of the target", func(t *testing.T) { byHandStaysInside(t, s, a, segment, later) })
	t.Run("refusals", func(t *testing.T) { byHandRefuses(t, s, a) })
}

// backUp makes a set.
func (s *site) backUp() answer {
	s.t.Helper()
	out, code := s.producer("backup-all", "--wait", "--json")
	require.Zero(s.t, code)
	var a answer
	require.NoError(s.t, json.Unmarshal([]byte(out), &a))
	return a
}

// scriptOf is the script beside a set.
func scriptOf(a answer) string {
	return filepath.Join(filepath.Dir(*a.Manifest), set.ID(*a.Set).ScriptName())
}

// byHandFromTheArchive has the main archive and nothing else, and takes the script out
// of it: the manifest is lost. The account postgres does it, without root.
func byHandFromTheArchive(t *testing.T, s *site, a answer, rows, want string) {
	dir := handOver(t, s, a.Archives[0])
	user, err := lab.PostgresUser()
	require.NoError(t, err)
	as := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Credential: user}
		cmd.Env = append(os.Environ(), "PGBACKREST_REPO1_PATH=/nowhere", "PGPORT=9")
		return cmd
	}
	out, err := as("tar", "xzf", filepath.Base(a.Archives[0]), set.ScriptEntry).CombinedOutput()
	require.NoError(t, err, "%s", out)
	target := filepath.Join(dir, "restored")
	out, err = as("bash", set.ScriptEntry, "restored", "postgres", "files").CombinedOutput()
	require.NoError(t, err, "%s", out)
	said := string(out)
	require.Contains(t, said, "gzip's own checksums are all that can be looked at")
	require.NotContains(t, said, "runuser")
	start := startCommand(t, said)
	cmd := as("sh", "-c", start)
	t.Cleanup(func() { _ = as("sh", "-c", stopCommand(start)).Run() })
	out, err = cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	psql := regexp.MustCompile(`(?m)^  (.*psql .*) -l$`).FindStringSubmatch(said)
	require.NotNil(t, psql, said)
	out, err = as("sh", "-c", psql[1]+" -AtX -c \""+rows+"\"").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, strings.TrimSpace(want), strings.TrimSpace(string(out)))
	require.FileExists(t, filepath.Join(target, "unpacked/files", s.root, "app/blob00"))
}

// handOver gives a directory with files of the set to the account postgres.
func handOver(t *testing.T, s *site, files ...string) string {
	dir, err := os.MkdirTemp(s.root, "hand-")
	require.NoError(t, err)
	user, err := lab.PostgresUser()
	require.NoError(t, err)
	for _, from := range files {
		to := filepath.Join(dir, filepath.Base(from))
		require.NoError(t, os.Link(from, to))
		if user != nil {
			require.NoError(t, os.Chown(to, int(user.Uid), int(user.Gid)))
		}
	}
	require.NoError(t, os.Chmod(dir, 0o755))
	if user != nil {
		require.NoError(t, os.Chown(dir, int(user.Uid), int(user.Gid)))
	}
	return dir
}

// byHandInParts restores what is left where an archive is lost.
func byHandInParts(t *testing.T, s *site, a answer, files map[string]string) {
	dir := handOver(t, s, a.Archives[1], scriptOf(a), *a.Manifest)
	script := filepath.Join(dir, filepath.Base(scriptOf(a)))
	out, err := exec.Command("bash", script, filepath.Join(dir, "new")).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "alation_backup.tar.gz is missing")
	require.Contains(t, string(out), "restore what is there: bash ")
	require.NoDirExists(t, filepath.Join(dir, "new"))
	byHand(t, script, filepath.Join(dir, "events"), "eventbus")
	require.DirExists(t, filepath.Join(dir, "events/unpacked/eventbus/topics/lineage"))
	byHand(t, script, "--from", s.dump(), filepath.Join(dir, "files"), "files")
	require.Equal(t, files, tree(t, filepath.Join(dir, "files/unpacked/files", s.root, "app")))
	require.NoDirExists(t, filepath.Join(dir, "files/unpacked/postgres"))
	require.NoDirExists(t, filepath.Join(dir, "files/postgres"))
}

// byHandBesideTarsFaults: that tar could not unpack something keeps the database from
// nobody. A tar that says so stands in for a set with a path that is too long for it.
func byHandBesideTarsFaults(t *testing.T, a answer, rows, want string) {
	target := filepath.Join(filepath.Dir(*a.Manifest), "..", "beside-faults")
	fake := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(fake, "tar"), []byte("#!/bin/sh\n/usr/bin/tar \"$@\"\ncase $1 in -xzpf) exit 2;; esac\n"), 0o755))
	cmd := exec.Command("bash", scriptOf(a), target)
	cmd.Env = append(os.Environ(), "PATH="+fake+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "NOT COMPLETE: tar could not unpack all of")
	startByHand(t, string(out))
	require.Equal(t, strings.TrimSpace(want), restoredQuery(t, string(out), rows))
}

// byHandStaysInside: a link in the data directory, and a tablespace that was made while
// the backup ran, would lead the server out of the target. A pgbackrest that makes links,
// and a pg_waldump that reads the WAL in which the source made a tablespace, stand in for
// a set that has them.
func byHandStaysInside(t *testing.T, s *site, a answer, segment, place string) {
	dir := handOver(t, s, a.Archives[0], *a.Manifest, scriptOf(a))
	script := filepath.Join(dir, filepath.Base(scriptOf(a)))
	fake := filepath.Join(dir, "bin")
	require.NoError(t, os.Mkdir(fake, 0o755))
	put := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(fake, name), []byte(text), 0o755))
	}
	run := func(target string) string {
		cmd := exec.Command("bash", script, filepath.Join(dir, target), "postgres")
		cmd.Env = append(os.Environ(), "PATH="+fake+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		require.Error(t, err, "%s", out)
		require.NotContains(t, string(out), "pg_ctl -D", "no line that starts it")
		require.Contains(t, string(out), "is not complete: remove it")
		return string(out)
	}
	put("pgbackrest", "#!/bin/sh\nset -e\n/usr/bin/pgbackrest \"$@\"\ncase \"$*\" in *restore) ln -s /tmp "+dir+"/linked/postgres/data/pg_log;; esac\n")
	require.Contains(t, run("linked"), "links, which may lead to a server in use")
	require.NoError(t, os.Remove(filepath.Join(fake, "pgbackrest")))

	bin, err := lab.PGBinDir()
	require.NoError(t, err)
	for _, name := range []string{"pg_ctl", "pg_controldata", "psql"} {
		require.NoError(t, os.Symlink(filepath.Join(bin, name), filepath.Join(fake, name)))
	}
	put("pg_waldump", "#!/bin/sh\nexec "+bin+"/pg_waldump -p "+s.pg.DataDir+"/pg_wal -r Tablespace "+segment+"\n")
	text, err := os.ReadFile(script)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(script, []byte(strings.Replace(string(text), "/usr/lib/postgresql/$MAJOR/bin", fake, 1)), 0o600))
	require.Contains(t, run("spaced"), "a tablespace was made in "+place+", which exists on this host")
}

// byHandRefuses: whatever is refused is refused before anything is written.
func byHandRefuses(t *testing.T, s *site, a answer) {
	dir := handOver(t, s, a.Archives[1], scriptOf(a), *a.Manifest)
	script, target := filepath.Join(dir, filepath.Base(scriptOf(a))), filepath.Join(dir, "new")
	content, err := os.ReadFile(a.Archives[0])
	require.NoError(t, err)
	content[len(content)/2] ^= 1
	require.NoError(t, os.WriteFile(filepath.Join(dir, filepath.Base(a.Archives[0])), content, 0o600))
	full := filepath.Join(dir, "full")
	require.NoError(t, os.MkdirAll(filepath.Join(full, "x"), 0o700))
	other := filepath.Join(dir, "other-major.sh")
	text, err := os.ReadFile(script)
	require.NoError(t, err)
	changed := strings.NewReplacer("readonly MAJOR=15\n", "readonly MAJOR=42\n").Replace(string(text))
	require.NotEqual(t, string(text), changed)
	require.NoError(t, os.WriteFile(other, []byte(changed), 0o600))
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"damaged archive":       {[]string{script, target, "files"}, "is damaged: use another set"},
		"no target":             {[]string{script}, "TARGET"},
		"unknown part":          {[]string{script, target, "redis"}, "has no part redis"},
		"an option":             {[]string{script, "-h"}, "TARGET"},
		"target is not empty":   {[]string{script, full}, "is not empty"},
		"target in quotes":      {[]string{script, target + " 'x"}, "choose a target of plain letters"},
		"a long target":         {[]string{script, target + strings.Repeat("/0123456789", 9)}, "too long for the server's socket"},
		"archives nowhere":      {[]string{script, "--from", full, target}, "is missing: bring it"},
		"PostgreSQL is missing": {[]string{other, target}, "apt-get install postgresql-42"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command("bash", c.args...).CombinedOutput()
			require.Error(t, err)
			require.Contains(t, string(out), c.says)
			require.NoDirExists(t, target)
			require.NoDirExists(t, target+" 'x")
		})
	}
}

func startCommand(t *testing.T, said string) string {
	t.Helper()
	start := regexp.MustCompile(`(?m)^  (.*pg_ctl .* start)$`).FindStringSubmatch(said)
	require.NotNil(t, start, "the start command in:\n%s", said)
	return start[1]
}

func stopCommand(start string) string {
	return strings.Replace(start, " start", " -m immediate stop", 1)
}

// startByHand starts the server by the line that the script printed.
func startByHand(t *testing.T, said string) {
	t.Helper()
	start := startCommand(t, said)
	t.Cleanup(func() { _ = exec.Command("sh", "-c", stopCommand(start)).Run() })
	got, err := exec.Command("sh", "-c", start).CombinedOutput()
	log, _ := os.ReadFile(regexp.MustCompile(`-l (\S+)`).FindStringSubmatch(start)[1])
	require.NoError(t, err, "%s\n%s", got, log)
}

func byHand(t *testing.T, script string, args ...string) string {
	t.Helper()
	cmd := exec.Command("bash", append([]string{script}, args...)...)
	cmd.Env = append(os.Environ(), "PGBACKREST_STANZA=wrong", "PGBACKREST_REPO1_PATH=/nowhere", "PGPORT=9") // the script names what it means
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// restoredQuery asks the restored server by the psql line that the script printed.
func restoredQuery(t *testing.T, said, sql string) string {
	t.Helper()
	psql := regexp.MustCompile(`(?m)^  (.*psql .*) -l$`).FindStringSubmatch(said)
	require.NotNil(t, psql, "the psql command in:\n%s", said)
	cmd := exec.Command("sh", "-c", psql[1]+` -AtX -c "$SQL"`)
	cmd.Env, cmd.Dir = append(os.Environ(), "SQL="+sql), "/"
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return strings.TrimSpace(string(out))
}

// segmentsByKafkasOwnTool counts the records that DumpLogSegments sees.
func segmentsByKafkasOwnTool(t *testing.T, m *set.Manifest, unpacked string) {
	t.Helper()
	for _, topic := range m.EventBus.Topics {
		for _, p := range topic.Partitions[:1] { // Java takes its time; one a topic will do
			for _, x := range p.Segments {
				out, err := lab.DumpLogSegments(filepath.Join(unpacked, x.Entry))
				require.NoError(t, err)
				require.Equal(t, x.Records, int64(strings.Count(out, "| offset: ")), "%s", x.Entry)
			}
		}
	}
}

// loadByHand puts the segments into the log directory of a stopped Apache Kafka.
func loadByHand(t *testing.T, m *set.Manifest, unpacked string) *lab.Broker {
	t.Helper()
	b := lab.Kafka(t, lab.KafkaOptions{})
	c, err := b.Client()
	require.NoError(t, err)
	forever := "-1"
	for _, topic := range m.EventBus.Topics {
		_, err := kadm.NewClient(c).CreateTopic(context.Background(), int32(len(topic.Partitions)), 1, map[string]*string{"retention.ms": &forever}, topic.Name)
		require.NoError(t, err)
	}
	c.Close()
	require.NoError(t, b.Shutdown())
	page, err := os.ReadFile("../../docs/set-format.md")
	require.NoError(t, err)
	require.Contains(t, string(page), instructions.LoadSegments, "the page tells what is tested here")
	cmd := exec.Command("sh", "-euc", instructions.LoadSegments)
	cmd.Dir, cmd.Env = filepath.Join(unpacked, "eventbus"), append(os.Environ(), "LOG_DIR="+b.DataDir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, b.Start(), "%s", b.LogTail())
	return b
}

// The program for a damaged archive in docs/restoring.md gets everything out of it
// but what lies in the damaged bytes.
func TestSalvageByHand(t *testing.T) {
	s := newSite(t, 1000, "")
	s.startWorker()
	a := s.backUp()
	worker := func(args ...string) string { // the examples in docs/exit-codes.md have the fields that there are
		out, err := exec.Command(filepath.Join(programs, "worker"), append(args, "--json")...).Output()
		require.NoError(t, err)
		return string(out)
	}
	require.Equal(t, shape(t, jsonExample(t, "worker verify SET --json")), shape(t, worker("verify", *a.Manifest)))
	require.Equal(t, shape(t, jsonExample(t, "worker restore SET --target DIR --json")), shape(t, worker("restore", *a.Manifest, "--target", filepath.Join(s.root, "restored"))))
	content, err := os.ReadFile(a.Archives[0])
	require.NoError(t, err)
	copy(content[len(content)/2:], "these bytes are wrong now") // in the middle of the files, which do not compress
	dir := t.TempDir()
	damaged, script := filepath.Join(dir, "damaged.tar.gz"), filepath.Join(dir, "salvage.py")
	require.NoError(t, os.WriteFile(damaged, content, 0o600))
	text, err := os.ReadFile("../../docs/restoring.md")
	require.NoError(t, err)
	program := regexp.MustCompile("(?s)```python\n(.*?)```").FindSubmatch(text)
	require.NotNil(t, program)
	require.NoError(t, os.WriteFile(script, program[1], 0o600))
	require.Error(t, exec.Command("tar", "-xzf", damaged, "-C", dir).Run(), "tar alone does not get past it")
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "files")))
	said, err := exec.Command("sh", "-c", "set -e; python3 "+script+" "+damaged+" | tar -x -C "+dir+" -f -").CombinedOutput()
	require.NoError(t, err, "%s", said)
	want, got := tree(t, filepath.Join(s.root, "app")), tree(t, filepath.Join(dir, "files", s.root, "app"))
	delete(want, "left.tmp")
	require.Equal(t, len(want), len(got), "every file is there")
	wrong := 0
	for name, x := range want {
		if got[name] != x {
			wrong++
		}
	}
	require.Equal(t, 1, wrong, "and one is damaged")
	require.FileExists(t, filepath.Join(dir, "catalog-backup/set.json"))
	t.Run("the finding reaches the person", func(t *testing.T) { damageReachesThePerson(t, s, a, content) })
}
