package instructions

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
)

const id = set.ID("202109232027_10-0-0-147420")

func sample() *set.Manifest {
	return &set.Manifest{Format: set.FormatName, Version: set.FormatVersion, Set: string(id), Instance: "catalog", Type: set.Full, CatalogVersion: "10.0.0.147420",
		Program: set.Tool{Name: "catalog-backup", Version: "0.1.0"}, Finished: time.Date(2021, 9, 23, 20, 30, 0, 0, time.UTC),
		NotCovered: []string{"the search index (rebuild it after a restore)"}, Warnings: []string{"a file changed while it was read: /data1/site_data/a b.txt"},
		Postgres: &set.Postgres{Tool: set.Tool{Name: "pgbackrest", Version: "2.45"}, Stanza: "catalog", Label: "20210923-202805F", ServerVersion: "15.18", ServerVersionNum: 150018,
			StartWAL: "000000010000000000000030", StopWAL: "000000010000000000000031", StartLSN: "0/30000028", StopLSN: "0/31000138", WALSegmentSize: 16 << 20, WAL: make([]set.WALFile, 2),
			Size: 1000, RepoSize: 100, Limits: map[string]int{"max_connections": 300, "max_wal_senders": 10}, Tablespaces: []set.Tablespace{{OID: 16402, Name: "far", Location: "/data3/far"}},
			Databases: []set.Database{{OID: 5, Name: "rosemeta", Encoding: "UTF8", Size: 900}}, Config: []set.ConfigFile{{Path: "/etc/postgresql/15/main/pg_hba.conf"}}},
		Files:    &set.Files{Paths: []string{"/data1/site_data"}, Exclude: []string{"*.tmp"}, Count: 3, Bytes: 3<<40 + 5000, Holes: 3 << 40},
		EventBus: &set.EventBus{Topics: []set.Topic{{Name: "lineage", Partitions: []set.Partition{{Records: 7, Bytes: 70, Segments: make([]set.Segment, 1)}}}}},
	}
}

func TestTextSaysWhatIsThereAndEachCommand(t *testing.T) {
	text := string(Text(sample()))
	for _, want := range []string{"PostgreSQL 15, which is the only major", "postgresql-15", "pgBackRest 2.45 or newer", "20210923-202805F", "000000010000000000000030",
		"oid 16402, name far, location /data3/far", "path /etc/postgresql/15/main/pg_hba.conf", "- /data1/site_data", "- *.tmp", "lineage: 1 partitions, 7 records, 70 bytes", "the search index",
		"a file changed while it was read", "- max_connections 300", "at most 33593370 bytes", "worker verify " + id.ManifestName(), "--only postgres",
		"bash " + id.ScriptName() + " /EMPTY/DIRECTORY", "tar xzf " + id.MainName(), "slot_name = NONE", "oid 5, name rosemeta, encoding UTF8, size 900", "moves the consumer positions"} {
		require.Contains(t, text, want)
	}
	require.NotContains(t, text, "keeps offsets")
	for _, line := range strings.Split(text, "\n") {
		require.LessOrEqual(t, utf8.RuneCountInString(line), width, line)
		require.Equal(t, strings.TrimRight(line, " "), line)
	}
}

// What a set has not is not told of.
func TestOfOnePart(t *testing.T) {
	m := sample()
	m.Postgres, m.EventBus = nil, nil
	text, script := string(Text(m)), string(Script(m))
	require.NotContains(t, text, "PostgreSQL 1")
	require.NotContains(t, text, "5. The restored server")
	require.NotContains(t, text, "--bus")
	require.Contains(t, script, "readonly PARTS='files'\n")
	m = sample()
	m.EventBus = nil
	require.NotContains(t, string(Text(m)), "Event Bus by hand")
	require.Contains(t, string(Script(m)), "readonly PARTS='postgres files'\n")
}

// Whatever stands in a manifest, it is data in the script and words in the text.
func TestHostileValuesStayData(t *testing.T) {
	dir := t.TempDir()
	evil := "'; touch " + dir + "/evil; '$(touch " + dir + "/evil)`touch " + dir + "/evil`\nreadonly ID=x\r\x1b[2J\u202e\xff"
	m := sample()
	m.Instance, m.CatalogVersion, m.Warnings, m.Notes, m.NotCovered = evil, evil, []string{evil}, []string{evil}, []string{evil}
	p := m.Postgres
	p.Label, p.StartWAL, p.StopWAL, p.StartLSN, p.StopLSN, p.Tool.Version, p.ServerVersion, p.Stanza = evil, evil, evil, evil, evil, evil, evil, evil
	p.Limits = map[string]int{evil: 1, "max_connections": 7, "a b": 2}
	p.Tablespaces[0].Location, p.Databases[0].Name, m.EventBus.Topics[0].Name, m.Files.Paths = evil, evil, evil, []string{evil}
	text, script := Text(m), Script(m)
	for _, r := range string(text) {
		require.False(t, r != '\n' && r < ' ' || r == '\u202e' || r == utf8.RuneError, "%q", r)
	}
	require.Contains(t, string(script), "readonly LIMITS='max_connections=7'\n")
	path := filepath.Join(dir, "x.sh")
	values, _, _ := strings.Cut(string(script), "\ndie() ")
	values += "\nprintf '%s|%s' \"$ID\" \"$LABEL\"\n"
	require.NoError(t, os.WriteFile(path, []byte(values), 0o600))
	out, err := exec.Command("bash", path).Output()
	require.NoError(t, err)
	got, label, _ := strings.Cut(string(out), "|")
	require.Equal(t, string(id), got)
	require.Equal(t, printable(evil), label)
	require.NoFileExists(t, filepath.Join(dir, "evil"))
}

func TestScriptIsGoodBash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sh")
	require.NoError(t, os.WriteFile(path, Script(sample()), 0o600))
	out, err := exec.Command("bash", "-n", path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, out)
	require.Equal(t, 1, strings.Count(program, valuesMark))
	require.NotContains(t, string(Script(sample())), valuesMark)
}

// Long lists end, and say how much there is.
func TestLongListsAreBounded(t *testing.T) {
	m := sample()
	m.EventBus.Topics = make([]set.Topic, 20_000)
	text := string(Text(m))
	require.Less(t, len(text), 60_000)
	require.Contains(t, text, "and 19500 more: the manifest names them")
}

// What a later version records is told without a word of this package.
func TestFieldsOfALaterVersion(t *testing.T) {
	type later struct {
		Tool    set.Tool          `json:"tool"`
		Glibc   string            `json:"glibc"`
		None    string            `json:"none"`
		Preload map[string]string `json:"preload"`
		Rows    []set.Tool        `json:"rows"`
		Numbers []int             `json:"numbers"`
		Null    []int             `json:"null"`
	}
	p := &page{}
	p.fields(fieldsOf(later{set.Tool{Name: "x"}, "2.36", "", map[string]string{"shared_preload_libraries": "pg_cron"}, []set.Tool{{Name: "a", Version: "1"}}, []int{128, 129}, nil}, "tool"))
	require.Equal(t, "  glibc                2.36\n\npreload:\n- shared_preload_libraries pg_cron\n\nrows:\n- name a, version 1\n\nnumbers:\n- 128\n- 129\n", p.b.String())
}

// The segments of a deleted topic, and the tries before the last at a partition, lie in
// the archive and are no part of the set.
func TestScriptLeavesOutWhatWasDiscarded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a set's place") // the set may lie anywhere
	m := sample()
	m.Postgres, m.Files = nil, nil
	const log = "/00000000000000000000.log"
	for _, entry := range []string{"gone/0", "lineage/0", "lineage/1~2", "../x", "empty/0"} {
		m.EventBus.Discarded = append(m.EventBus.Discarded, set.Segment{Entry: set.EventBusPrefix + entry + log})
	}
	for _, name := range []string{"gone/0", "lineage/0", "lineage/0~2", "lineage/1~2", "lineage/1~3", "lineage/2", "empty/0"} {
		path := filepath.Join(dir, set.EventBusPrefix, name)
		require.NoError(t, os.MkdirAll(path, 0o700))
		require.NoError(t, os.WriteFile(path+log, []byte(name), 0o600))
	}
	copied := filepath.Join(dir, set.ManifestCopy)
	require.NoError(t, os.MkdirAll(filepath.Dir(copied), 0o700))
	require.NoError(t, os.WriteFile(copied, fmt.Appendf(nil, "{\n \"set\": %q\n}\n", id), 0o600))
	out, err := exec.Command("tar", "-czf", filepath.Join(dir, id.EventBusName()), "-C", dir, "eventbus", set.ManifestCopy).CombinedOutput()
	require.NoError(t, err, "%s", out)
	script, target := filepath.Join(dir, id.ScriptName()), filepath.Join(t.TempDir(), "new")
	require.NoError(t, os.WriteFile(script, Script(m), 0o600))
	out, err = exec.Command("bash", script, target).CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.Command("sh", "-c", "cd "+target+"/unpacked/eventbus/topics && find . -type f | sort | xargs grep -H . && ls").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "./lineage/0"+log+":lineage/0~2\n./lineage/1"+log+":lineage/1~3\n./lineage/2"+log+":lineage/2\nlineage\n", string(out))
}

// packed makes a set of files: its main archive by tar, and its script beside it.
func packed(t *testing.T, script string, pack string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "sp ace  dir's")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "catalog-backup"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "files/app"), 0o755))
	for _, name := range []string{"a", "b"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "files/app", name), []byte(name), 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, set.ManifestCopy), fmt.Appendf(nil, "{\n \"set\": %q\n}\n", id), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, id.ScriptName()), []byte(script), 0o600))
	cmd := exec.Command("bash", "-euc", pack, "pack", id.MainName())
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir
}

const pack = `tar -czf "$1" files catalog-backup`

func filesScript() string {
	m := sample()
	m.Postgres, m.EventBus = nil, nil
	return string(Script(m))
}

// Without the manifest, its copy at the end of an archive tells what that is an archive of, and that it was not cut.
func TestScriptWithoutManifestKnowsTheArchive(t *testing.T) {
	for name, c := range map[string]struct{ pack, says string }{
		"cut where gzip sees nothing": {`(tar -cf - --exclude=b files | head -c 1536 | gzip; head -c 1024 /dev/zero | gzip) >"$1"`, "is cut: the copy of the manifest"},
		"of another set":              {`sed -i s/2021/2020/ catalog-backup/set.json; ` + pack, "of another set, 2020"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := packed(t, filesScript(), c.pack)
			target := filepath.Join(t.TempDir(), "new")
			out, err := exec.Command("bash", filepath.Join(dir, id.ScriptName()), target).CombinedOutput()
			require.Error(t, err, "%s", out)
			require.Contains(t, string(out), c.says)
			require.NoDirExists(t, target)
		})
	}
}

// The caller's shell changes nothing, and the archives are found however the script is called.
func TestScriptHoweverItIsCalled(t *testing.T) {
	dir := packed(t, filesScript(), pack)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(filepath.Join(dir, id.ScriptName()), link))
	own := filepath.Join(dir, id.ScriptName())
	for name, c := range map[string]struct {
		env  []string
		call string
	}{
		"TAR_OPTIONS":    {[]string{"TAR_OPTIONS=--exclude=a*", "GZIP=-9"}, `bash "$1" "$2"`},
		"options":        {[]string{"SHELLOPTS=noglob:noclobber:keyword", "BASHOPTS=failglob:nocasematch", "POSIXLY_CORRECT=1", "CDPATH=/:/usr", "GLOBIGNORE=*"}, `exec bash "$1" "$2"`},
		"functions":      {[]string{"BASH_FUNC_tar%%=() { echo mine; }", "BASH_FUNC_readlink%%=() { echo /mine; }", "BASH_FUNC_unset%%=() { :; }", "BASH_FUNC_compgen%%=() { :; }"}, `exec bash "$1" "$2"`},
		"through a link": {nil, `bash "` + link + `" "$2"`},
		"from a pipe":    {nil, `cd "$(dirname "$1")"; cat "$1" | bash -s -- "$2"`},
		"redirected":     {nil, `cd "$(dirname "$1")"; bash -s -- "$2" <"$1"`},
		"beside, inside": {nil, `tar xzf "$(dirname "$1")"/*.gz -C "$(dirname "$1")" catalog-backup; cp "$1" "$(dirname "$1")/catalog-backup/restore.sh"; bash "$(dirname "$1")/catalog-backup/restore.sh" "$2"`},
	} {
		t.Run(name, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "new")
			cmd := exec.Command("bash", "-c", c.call, "bash", own, target)
			cmd.Env = append(os.Environ(), c.env...)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Contains(t, string(out), "== done")
			require.NotContains(t, string(out), "unbound variable")
			for _, f := range []string{"a", "b"} {
				require.FileExists(t, filepath.Join(target, "unpacked/files/app", f), "%s", out)
			}
		})
	}
	out, err := exec.Command("bash", own).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "TARGET   a directory")
	require.NotContains(t, string(out), "TAR_OPTIONS")
}

// The command that a refusal names can be copied, whatever the directory is called.
func TestScriptNamesACommandThatWorks(t *testing.T) {
	dir := packed(t, string(Script(sample())), pack)
	target := filepath.Join(t.TempDir(), "new")
	out, err := exec.Command("bash", filepath.Join(dir, id.ScriptName()), "--from", dir, target, "files", "eventbus").CombinedOutput()
	require.Error(t, err)
	_, command, found := strings.Cut(strings.TrimSpace(string(out)), "restore what is there: ")
	require.True(t, found, "%s", out)
	out, err = exec.Command("bash", "-c", strings.Replace(command, " postgres", "", 1)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.FileExists(t, filepath.Join(target, "unpacked/files/app/b"))
}

// What tar cannot unpack keeps nothing else back, and is an error in the end.
func TestScriptGoesOnBehindWhatTarCannotUnpack(t *testing.T) {
	dir := packed(t, filesScript(), `tar -czf "$1" --transform="s,files/app/a,files/app/$(printf 'directory/%.0s' {1..500})a," files catalog-backup`)
	target := filepath.Join(t.TempDir(), "new")
	out, err := exec.Command("bash", filepath.Join(dir, id.ScriptName()), target).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "File name too long")
	require.Contains(t, string(out), "== done")
	require.Contains(t, string(out), "NOT COMPLETE: tar could not unpack all of "+id.MainName())
	require.FileExists(t, filepath.Join(target, "unpacked/files/app/b"))
}

// Copied segments of transactions have no markers: the topics are named.
func TestTopicsWithTransactions(t *testing.T) {
	m := sample()
	require.Contains(t, string(Text(m)), "No topic of this set is known to have records of transactions")
	m.EventBus.Topics = append(m.EventBus.Topics, set.Topic{Name: "tx.new", Partitions: []set.Partition{{Records: 1, Transactional: 1}}},
		set.Topic{Name: "tx.old", Partitions: []set.Partition{{}, {Records: 1, ControlBatches: 1}}})
	text := strings.Join(strings.Fields(string(Text(m))), " ")
	require.Contains(t, text, "isolation.level=read_uncommitted: tx.new, tx.old")
	require.Contains(t, text, "Do not abort")
	require.NotContains(t, text, "it keeps offsets")
}
