package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
)

// sign makes an info file of sections and lines with its right checksum.
func sign(lines string) []byte {
	sum := newInfoSum()
	section := ""
	for _, line := range strings.Split(lines, "\n") {
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			section = line[1 : len(line)-1]
		} else if k, v, ok := splitInfoLine([]byte(line)); ok {
			sum.add(section, k, v)
		}
	}
	return fmt.Appendf(nil, "%s\n\n[backrest]\nbackrest-checksum=%q\n", lines, sum.hex())
}

const manifestHead = `[backrest]
backrest-format=5
backrest-version="2.45"

[backup]
backup-archive-start="000000010000000000000004"
backup-archive-stop="000000010000000000000004"
backup-bundle=true
backup-label="20261123-183800F"
backup-lsn-start="0/4000028"
backup-lsn-stop="0/4000100"
backup-type="full"

[backup:db]
db-id=1
db-system-id=42
db-version="15"

[backup:option]
option-compress-type="none"

[target:file]
`

const someSum = `"checksum":"587b596f04f7db9c2cad3d6b87dd2b3a05de4f35"`

func hostilePart() *set.Postgres {
	return &set.Postgres{
		Stanza: Stanza, Label: "20261123-183800F", SystemIdentifier: "42", ServerVersionNum: 150018, StartLSN: "0/4000028", StopLSN: "0/4000100",
		StartWAL: "000000010000000000000004", StopWAL: "000000010000000000000004", WALSegmentSize: 16 << 20, CompressType: "none",
	}
}

func TestHostileManifests(t *testing.T) {
	huge := "9223372036854775807"
	for name, lines := range map[string]string{
		"leaves":           `pg_data/../../etc/passwd={` + someSum + `,"size":3,"timestamp":1}`,
		"absolute":         `/etc/passwd={` + someSum + `,"size":3,"timestamp":1}`,
		"negative size":    `pg_data/a={` + someSum + `,"size":-3,"timestamp":1}`,
		"negative offset":  `pg_data/a={"bni":1,"bno":-5,` + someSum + `,"size":3,"timestamp":1}`,
		"negative bundle":  `pg_data/a={"bni":-1,` + someSum + `,"size":3,"timestamp":1}`,
		"negative stored":  `pg_data/a={` + someSum + `,"repo-size":-1,"size":3,"timestamp":1}`,
		"overflow":         `pg_data/a={"bni":1,"bno":` + huge + `,` + someSum + `,"size":3,"timestamp":1}`,
		"sum overflow":     `pg_data/a={` + someSum + `,"size":` + huge + `}` + "\n" + `pg_data/b={` + someSum + `,"size":` + huge + `}`,
		"huge":             `pg_data/a={"bni":1,` + someSum + `,"size":` + huge + `}`,
		"no size":          `pg_data/a={` + someSum + `}`,
		"no checksum":      `pg_data/a={"size":3}`,
		"short checksum":   `pg_data/a={"checksum":"58","size":3}`,
		"twice":            `pg_data/a={` + someSum + `,"size":3}` + "\n" + `pg_data/a={` + someSum + `,"size":3}`,
		"overlap":          `pg_data/a={"bni":1,` + someSum + `,"size":30}` + "\n" + `pg_data/b={"bni":1,"bno":3,` + someSum + `,"size":3}`,
		"elsewhere":        `pg_data/a={"reference":"20261122-183800F",` + someSum + `,"size":3}`,
		"block map":        `pg_data/a={"bi":1,` + someSum + `,"size":3}`,
		"number as text":   `pg_data/a={"size":"3"}`,
		"list":             `pg_data/a=[1,2]`,
		"too large number": `pg_data/a={` + someSum + `,"size":99999999999999999999}`,
	} {
		t.Run(name, func(t *testing.T) {
			content := sign(manifestHead + lines)
			label := set.PostgresRepo + "backup/" + Stanza + "/20261123-183800F/"
			list := []entry{{label + "backup.manifest", content}, {label + "backup.manifest.copy", content}, {label + "bundle/1", []byte("abc")}, {label + "pg_data/a", []byte("abc")}}
			found := verify(t, hostilePart(), list)
			said := ""
			for _, d := range found {
				if d.Entry == list[0].name {
					said += d.Problem + "; "
				}
			}
			require.NotEmpty(t, said)
			if name == "huge" {
				require.Contains(t, fmt.Sprint(found), "cut short")
			}
		})
	}
}

func TestHostileEntries(t *testing.T) {
	for _, name := range []string{
		set.PostgresRepo, set.PostgresRepo + "x", set.PostgresRepo + "../../etc/passwd", set.PostgresRepo + "backup/catalog/latest",
		set.PostgresRepo + "backup/catalog/20261123-183800F/bundle/01", set.PostgresRepo + "archive/catalog/15-1/0000000100000000/x",
		set.PostgresConfig + "etc/shadow", "files/x", "",
	} {
		var found []set.Damage
		v := NewVerifier(hostilePart(), func(d set.Damage) { found = append(found, d) })
		require.NoError(t, v.Entry(name, 1, strings.NewReader("x")))
		if !strings.HasSuffix(name, "/") {
			require.NotEmpty(t, found, name)
		}
		require.NoError(t, v.Finish())
		require.NotEmpty(t, found)
	}
	v := NewVerifier(hostilePart(), func(set.Damage) {})
	broken := errors.New("the archive broke")
	err := v.Entry(set.PostgresRepo+"backup/catalog/backup.info", 9, io.MultiReader(strings.NewReader("[backrest]"), errorReader{broken}))
	require.ErrorIs(t, err, broken)
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

func FuzzManifest(f *testing.F) {
	f.Add(string(sign(manifestHead + `pg_data/a={"bni":1,` + someSum + `,"size":30}`)))
	f.Add("[a]\nb=[1]\n[backrest]\nbackrest-checksum=1\n")
	f.Fuzz(func(t *testing.T, text string) {
		// As it is, and with a right checksum.
		for _, content := range [][]byte{[]byte(text), sign(manifestHead + text)} {
			v := NewVerifier(hostilePart(), func(set.Damage) {})
			label := set.PostgresRepo + "backup/" + Stanza + "/20261123-183800F/"
			for _, e := range []entry{{label + "backup.manifest", content}, {label + "bundle/1", []byte("abc")}, {label + "pg_data/a", []byte("abc")}} {
				if err := v.Entry(e.name, int64(len(e.content)), bytes.NewReader(e.content)); err != nil {
					t.Fatal(err)
				}
			}
			if err := v.Finish(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestRestoreCutsTheTiesToTheOriginal restores a cluster whose configuration in
// the data directory points to all kinds of places outside.
func TestRestoreCutsTheTiesToTheOriginal(t *testing.T) {
	outside := place(t)
	require.NoError(t, os.Chmod(outside, 0o777))
	mark := filepath.Join(outside, "acted")
	require.NoError(t, os.Mkdir(mark, 0o777))
	require.NoError(t, os.Chmod(mark, 0o777))
	p := lab.Postgres(t, lab.WithInitDB("--waldir="+filepath.Join(outside, "wal")), lab.WithConf("include_if_exists = '"+outside+"/none.conf'", "Log_Directory='"+outside+"/log'",
		"archive_mode = on", "archive_command = 'touch "+mark+"/archived'", "restore_command = 'touch "+mark+"/restored; false'",
		"recovery_end_command = 'touch "+mark+"/ended'", "recovery_target_time = '2020-01-01'", "primary_conninfo = 'host=/nowhere'", "primary_slot_name = 'x'",
		"cluster_name = 'it''s # odd'", "idle_session_timeout = 700", "statement_timeout = 900"))
	p.Psql("create table t as select generate_series(1, 100) i; alter system set work_mem = '7MB'; alter system set archive_timeout = '30s'")
	parts := filepath.Join(p.DataDir, "parts")
	require.NoError(t, os.Mkdir(parts, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(parts, "a.conf"), []byte("maintenance_work_mem = 71MB\n"), 0o644))
	appendTo(t, filepath.Join(p.DataDir, "postgresql.conf"), "include_dir = 'parts'\n")
	for _, name := range []string{"postgresql.conf", "pg_ident.conf"} {
		require.NoError(t, os.Rename(filepath.Join(p.DataDir, name), filepath.Join(outside, name)))
		require.NoError(t, os.Symlink(filepath.Join(outside, name), filepath.Join(p.DataDir, name)))
	}
	w := newWork(t)
	f, _, err := Preflight(t.Context(), options(p), w)
	require.NoError(t, err)
	require.Len(t, f.Config, 2)
	// Only from now on, so that the original is not in the way.
	require.NoError(t, os.WriteFile(filepath.Join(parts, "b.conf"), []byte("data_directory = '"+p.DataDir+"'\nhba_file '"+outside+"/hba'\nssl = on\nssl_cert_file='"+outside+"/c'\nunix_socket_group = 'nobody-there'\nsynchronous_standby_names = '*'\nshared_preload_libraries = 'auto_explain, not_here'\nlisten_addresses = '192.0.2.1'\n"), 0o644))
	appendTo(t, filepath.Join(p.DataDir, "pg_hba.conf"), "host @"+outside+"/users all 127.0.0.1/32 trust\n")
	part, _, err := Backup(t.Context(), options(p), w, f, noProgress)
	require.NoError(t, err)
	require.NoError(t, p.Stop())
	require.NoError(t, os.RemoveAll(p.DataDir))
	require.NoError(t, os.RemoveAll(mark))
	require.NoError(t, os.Mkdir(mark, 0o777))
	require.NoError(t, os.Chmod(mark, 0o777))

	r, target := restore(t, w, part)
	s := start(t, r, p.Port)
	require.Equal(t, "100", s.query("postgres", "select count(*) from t"))
	s.query("postgres", "insert into t values (1)")
	s.query("postgres", "select pg_switch_wal()")
	s.query("postgres", "checkpoint")
	require.Equal(t, "7MB|71MB|it's # odd|auto_explain|", s.query("postgres",
		"select concat_ws('|', current_setting('work_mem'), current_setting('maintenance_work_mem'), current_setting('cluster_name'), current_setting('shared_preload_libraries'), current_setting('primary_conninfo'))"))
	require.Equal(t, target+"/data", s.query("postgres", "show data_directory"))
	requireInside(t, target)
	require.Contains(t, strings.Join(r.Notes, "\n"), "not_here")
	acted, err := os.ReadDir(mark)
	require.NoError(t, err)
	require.Empty(t, acted)
	st, err := os.Lstat(filepath.Join(target, "data", "pg_wal"))
	require.NoError(t, err)
	require.True(t, st.IsDir())
}

func TestRestoreRefuses(t *testing.T) {
	p := lab.Postgres(t)
	w := newWork(t)
	part, _ := backUp(t, options(p), w)
	target := filepath.Join(place(t), "postgres")
	try := func(change func(*RestoreOptions)) error {
		o := RestoreOptions{Part: part, Repo: w.RepoDir(), Target: target, Runner: keptRunner{}}
		change(&o)
		_, err := Restore(t.Context(), o)
		return err
	}
	permanentWith(t, try(func(*RestoreOptions) {}), "no such file")
	require.NoError(t, os.Mkdir(target, 0o700))
	require.NoError(t, os.WriteFile(target+"/x", nil, 0o600))
	permanentWith(t, try(func(*RestoreOptions) {}), "not empty")
	require.NoError(t, os.Remove(target+"/x"))
	for _, c := range []string{"$(id)", "`id`", `a"b`, "a'b", `a\b`} {
		permanentWith(t, try(func(o *RestoreOptions) { o.Target += c }), "without quotes")
	}
	permanentWith(t, try(func(o *RestoreOptions) { o.PgBackRest = "/nowhere" }), "apt-get install")
	permanentWith(t, try(func(o *RestoreOptions) { other := *part; other.SystemIdentifier = "1"; o.Part = &other }), "another backup")
	permanentWith(t, try(func(o *RestoreOptions) { other := *part; other.Label = "../x"; o.Part = &other }), "none of ours")
	closed := filepath.Join(place(t), "closed")
	require.NoError(t, os.MkdirAll(filepath.Join(closed, "postgres"), 0o700))
	permanentWith(t, try(func(o *RestoreOptions) { o.Target = filepath.Join(closed, "postgres") }), "cannot enter "+closed)
	small := place(t)
	mount(t, small, "10m")
	require.NoError(t, os.Chmod(small, 0o755))
	require.NoError(t, os.Mkdir(small+"/postgres", 0o700))
	permanentWith(t, try(func(o *RestoreOptions) { o.Target = small + "/postgres" }), "MB free", "larger place")
	left, err := os.ReadDir(target)
	require.NoError(t, err)
	require.Empty(t, left)
	wal, err := repoSegments(w.RepoDir(), part)
	require.NoError(t, err)
	require.NoError(t, os.Remove(wal[part.StartWAL]))
	permanentWith(t, try(func(*RestoreOptions) {}), part.StartWAL, "verify")
}
