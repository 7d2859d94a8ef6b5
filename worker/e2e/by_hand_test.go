package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"
)

// A set restores without our program: docs/restore-by-hand.sh uses sha256sum, tar
// and pgBackRest, and the bus comes into Apache Kafka the way docs/set-format.md
// tells it. Everything is compared with the source.
func TestRestoreByHand(t *testing.T) {
	s := newSite(t, 50_000, "")
	space, err := s.pg.Mkdir("space")
	require.NoError(t, err)
	s.pg.Psql(fmt.Sprintf("create tablespace far location '%s'", space))
	s.pg.Psql("create table kept_far tablespace far as select g, md5(g::text) from generate_series(1, 1000) g")
	nastyFiles(t, filepath.Join(s.root, "app"))
	s.startWorker()
	out, code := s.producer("backup-all", "--wait", "--json")
	require.Zero(t, code)
	var a answer
	require.NoError(t, json.Unmarshal([]byte(out), &a))
	s.termWorker()
	rows := "select count(*), md5(string_agg(body, ',' order by id)), (select md5(string_agg(md5, ',' order by g)) from kept_far) from events"
	want := s.pg.Psql(rows)
	files := tree(t, filepath.Join(s.root, "app"))
	records := digests(t, s.bus)
	require.NoError(t, s.pg.Kill9()) // and everything of the source but the set is out of reach
	require.NoError(t, s.bus.Kill9())

	target := filepath.Join(s.root, "by-hand")
	said := byHand(t, *a.Manifest, target)
	start := regexp.MustCompile(`(?m)^  (.*pg_ctl .* start)$`).FindStringSubmatch(said)
	require.NotNil(t, start, "the start command in:\n%s", said)
	stop := exec.Command("sh", "-c", strings.Replace(start[1], " start", " -m immediate stop", 1))
	t.Cleanup(func() { _ = stop.Run() })
	got, err := exec.Command("sh", "-c", start[1]).CombinedOutput()
	serverLog, _ := os.ReadFile(filepath.Join(target, "postgres/server.log"))
	require.NoError(t, err, "%s\n%s", got, serverLog)
	require.Equal(t, strings.TrimSpace(want), strings.TrimSpace(restoredQuery(t, said, rows)))
	require.Equal(t, "off|f", strings.TrimSpace(restoredQuery(t, said, "select current_setting('archive_mode'), pg_is_in_recovery()")))

	restored := tree(t, filepath.Join(target, "unpacked/files", s.root, "app"))
	delete(files, "left.tmp") // excluded
	require.Equal(t, files, restored)

	m, err := set.ReadManifest(*a.Manifest)
	require.NoError(t, err)
	segmentsByKafkasOwnTool(t, m, filepath.Join(target, "unpacked"))
	require.Equal(t, records, digests(t, loadByHand(t, m, filepath.Join(target, "unpacked"))))
}

// The script refuses before it writes anything.
func TestRestoreByHandRefuses(t *testing.T) {
	dir := t.TempDir()
	id := "202109232027_10-0-0-147420"
	manifest := filepath.Join(dir, id+"_alation_backup.json")
	main := filepath.Join(dir, id+"_alation_backup.tar.gz")
	require.NoError(t, os.WriteFile(main, []byte("damaged"), 0o600))
	m := &set.Manifest{Format: set.FormatName, Version: set.FormatVersion, Set: id, Archives: []set.Archive{{Kind: set.MainArchive, Name: filepath.Base(main), Size: 7, SHA256: strings.Repeat("0", 64)}},
		Files: &set.Files{Entries: []set.File{}}}
	var text bytes.Buffer
	require.NoError(t, set.WriteManifest(&text, m, func() ([]byte, error) { return nil, io.EOF }))
	require.NoError(t, os.WriteFile(manifest, text.Bytes(), 0o600))
	full := filepath.Join(dir, "full")
	require.NoError(t, os.MkdirAll(filepath.Join(full, "x"), 0o700))
	for name, c := range map[string]struct{ what, target, says string }{
		"damaged archive":     {manifest, filepath.Join(dir, "new"), "an archive is damaged or missing"},
		"no manifest":         {filepath.Join(dir, "202001010101_9_alation_backup.json"), filepath.Join(dir, "new"), "is not a file"},
		"target is not empty": {manifest, full, "is not empty"},
		"target in quotes":    {manifest, filepath.Join(dir, "new 'x"), "choose a target of plain letters"},
		"some other file":     {filepath.Join(dir, "full", "x"), filepath.Join(dir, "new"), "is not a file"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command(byHandScript(t), c.what, c.target).CombinedOutput()
			require.Error(t, err)
			require.Contains(t, string(out), c.says)
			require.NoDirExists(t, filepath.Join(dir, "new"))
		})
	}
}

func byHandScript(t *testing.T) string {
	path, err := filepath.Abs("../../docs/restore-by-hand.sh")
	require.NoError(t, err)
	return path
}

func byHand(t *testing.T, what, target string) string {
	t.Helper()
	cmd := exec.Command(byHandScript(t), what, target)
	cmd.Env = append(os.Environ(), "PGBACKREST_STANZA=wrong") // the script names what it means
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// restoredQuery asks the restored server by the psql line that the script printed.
func restoredQuery(t *testing.T, said, sql string) string {
	t.Helper()
	psql := regexp.MustCompile(`(?m)^  (.*psql .*) -l$`).FindStringSubmatch(said)
	require.NotNil(t, psql, "the psql command in:\n%s", said)
	cmd := exec.Command("sh", "-c", psql[1]+` -d postgres -AtX -c "$SQL"`)
	cmd.Env, cmd.Dir = append(os.Environ(), "SQL="+sql), "/"
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// nastyFiles adds what an archive gets wrong easily.
func nastyFiles(t *testing.T, app string) {
	at := func(name string) string { return filepath.Join(app, name) }
	require.NoError(t, os.MkdirAll(at("deep/closed"), 0o755))
	require.NoError(t, os.WriteFile(at("deep/closed/secret"), []byte("key"), 0o400))
	require.NoError(t, os.Link(at("deep/closed/secret"), at("hard link")))
	require.NoError(t, os.Symlink("deep/closed/secret", at("link")))
	require.NoError(t, os.Symlink("/nowhere/at all", at("dangling")))
	require.NoError(t, os.WriteFile(at("not utf-8 \xff\xfe"), []byte("x"), 0o644))
	require.NoError(t, os.WriteFile(at("new\nline"), nil, 0o4755))
	require.NoError(t, os.WriteFile(at(strings.Repeat("long", 60)), []byte("y"), 0o600))
	require.NoError(t, unix.Setxattr(at("blob00"), "user.origin", []byte("lineage"), 0))
	sparse, err := os.Create(at("sparse"))
	require.NoError(t, err)
	_, err = sparse.WriteAt([]byte("end"), 50<<20)
	require.NoError(t, errors.Join(err, sparse.Close()))
	old := time.Date(1969, 7, 20, 20, 17, 40, 123456789, time.UTC)
	require.NoError(t, os.Chtimes(at("blob01"), old, old))
	require.NoError(t, os.Chmod(at("deep/closed"), 0o555))
}

// tree describes every file below dir: kind, mode, owner, time, content, attribute.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if rel == "left.tmp" {
			out[rel] = ""
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		content := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(b)
			content = hex.EncodeToString(sum[:8]) + " " + strconv.FormatUint(uint64(st.Nlink), 10)
		case unix.S_IFLNK:
			content, _ = os.Readlink(path)
		}
		attr := make([]byte, 64)
		n, _ := unix.Lgetxattr(path, "user.origin", attr)
		when := fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		if rel == "." {
			when = "" // left.tmp is missing in it
		}
		out[rel] = fmt.Sprintf("%o %d:%d %s %s %q", st.Mode, st.Uid, st.Gid, when, content, attr[:max(n, 0)])
		return nil
	}))
	return out
}

// digests are the records of every partition in their order, in short, as an
// ordinary consumer reads them.
func digests(t *testing.T, b *lab.Broker) map[string]string {
	t.Helper()
	c, err := b.Client()
	require.NoError(t, err)
	defer c.Close()
	ctx, done := context.WithTimeout(context.Background(), 60*time.Second)
	defer done()
	ends, err := kadm.NewClient(c).ListEndOffsets(ctx)
	require.NoError(t, err)
	out := map[string]string{}
	for topic, partitions := range ends {
		for p, end := range partitions {
			if strings.HasPrefix(topic, "__") {
				continue
			}
			reader, err := b.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {p: kgo.NewOffset().AtStart()}}))
			require.NoError(t, err)
			h, n, next := sha256.New(), 0, int64(0)
			for next < end.Offset {
				f := reader.PollFetches(ctx)
				require.NoError(t, f.Err())
				f.EachRecord(func(r *kgo.Record) {
					fmt.Fprintf(h, "%d %d %q %q %v\n", r.Offset, r.Timestamp.UnixMilli(), r.Key, r.Value, r.Headers)
					n, next = n+1, r.Offset+1
				})
			}
			reader.Close()
			out[fmt.Sprintf("%s/%d", topic, p)] = fmt.Sprintf("%d records to %d: %x", n, end.Offset, h.Sum(nil)[:8])
		}
	}
	return out
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
	script := `set -eu
for dir in topics/*/*; do
  partition=$(basename "$(dirname "$dir")")-$(basename "$dir")
  find "$LOG_DIR/$partition" -type f ! -name partition.metadata -delete
  cp "$dir"/*.log "$LOG_DIR/$partition"/
done
rm -f "$LOG_DIR/.kafka_cleanshutdown"`
	page, err := os.ReadFile("../../docs/set-format.md")
	require.NoError(t, err)
	require.Contains(t, string(page), strings.TrimPrefix(script, "set -eu\n"), "the page tells what is tested here")
	cmd := exec.Command("sh", "-c", script)
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
	out, code := s.producer("backup-all", "--wait", "--json")
	require.Zero(t, code)
	var a answer
	require.NoError(t, json.Unmarshal([]byte(out), &a))
	s.termWorker()
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
}
