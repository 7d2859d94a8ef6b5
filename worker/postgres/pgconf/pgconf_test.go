package pgconf_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/worker/postgres/pgconf"
)

// odd are lines that a person, a tool or an enemy might write. Each value is that
// of a setting which takes any text, so that only the lexer decides.
func odd() []string {
	values := []string{
		"x", "'x'", "'it''s'", `'it\'s'`, `'a\\b'`, `'\101\12\1b\400\7'`, `'\b\f\n\r\t\q'`, `'a\0b'`, "''", "''''", "'''x'", "'x''", "'x", `'x\'`, "'a'b", "'a' 'b'", "'#'",
		"a-b", "a.b", "a.b.c", "a:b/c", "a/b", "a.1", "_", "é", "'é'", "$x", "a$b", "x#c", "x #c", "'x'#c",
		"1", "+1", "-1", "0x1F", "0X1F", "0x", "0xg", "1kB", "1 kB", "1k1", "1.5", "1.5GB", ".5", "5.", ".", "+.", "1e5", "1.e5", "1.5e-3", "1.5e", "--1", "1-1",
		"=", "= x", "x y", "x\ry", "x\r", "\rx", "\vx", "\fx", "x\v", "x\u00a0", `"x"`, "on", "x=", "x;", "x,y", "'x',", "(x)", "\\x", "'a\tb'", "'a\rb'", "@x", "%h",
	}
	var lines []string
	for _, v := range values {
		lines = append(lines, "cluster_name = "+v, "cluster_name "+v, "cluster_name="+v, "cluster_name\r=\r"+v)
	}
	return append(lines, "Cluster_Name = x", "CLUSTER_NAME 'x'", "cluster_name", "cluster_name =", "= x", "'cluster_name' = x", "1 = x", "a.b = c", "a.b.c = d", "a.B 'c'", ".a = b", "a. = b", "a-b = c",
		"\ufeffcluster_name = x", "", " ", "\t\r", "#x", " # x", "\v", "a = 1\rinclude 'x'", "\rcluster_name = x", "é.é = é", "cluster_name = 'x'\rwork_mem = 1", "# a\rcluster_name = x",
		"cluster_name = "+strings.Repeat("y", 40<<10), "#"+strings.Repeat("y", 40<<10), "cluster_name = 'a\x00b'", "cluster_name = a\x00b", "\x00", "cluster_name\x00= x")
}

// TestAsTheServerReads compares with pg_file_settings of a real server, each odd
// line in a file of its own.
func TestAsTheServerReads(t *testing.T) {
	p := lab.Postgres(t)
	dir := filepath.Join(p.DataDir, "odd")
	require.NoError(t, os.Mkdir(dir, 0o755))
	lines := odd()
	for i, line := range lines {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d.conf", i)), []byte("\n"+line), 0o644))
	}
	conf, err := os.OpenFile(filepath.Join(p.DataDir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	for i := range lines { // an error in one file ends the reading of an include_dir
		_, err = fmt.Fprintf(conf, "\ninclude 'odd/%04d.conf'", i)
		require.NoError(t, err)
	}
	require.NoError(t, conf.Close())
	conn, err := p.Connect(t.Context(), "postgres")
	require.NoError(t, err)
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), `select right(sourcefile, 9), coalesce(sourceline, 0), coalesce(name, ''), convert_to(coalesce(setting, ''), 'UTF8'), coalesce(error, '') from pg_file_settings where sourcefile like '%/odd/%'`)
	require.NoError(t, err)
	said := map[string]string{}
	for rows.Next() {
		var file, name, problem string
		var line int
		var value []byte
		require.NoError(t, rows.Scan(&file, &line, &name, &value, &problem))
		if name == "" {
			said[file] = "refused"
			continue
		}
		said[file] = fmt.Sprintf("%d %s=%s", line, strings.ToLower(name), value)
	}
	require.NoError(t, rows.Err())
	for i, line := range lines {
		file := fmt.Sprintf("%04d.conf", i)
		got := pgconf.Parse(line)
		want := map[pgconf.Kind]string{pgconf.Blank: "", pgconf.Invalid: "refused", pgconf.Setting: fmt.Sprintf("2 %s=%s", got.Name, got.Value)}[got.Kind]
		if strings.ContainsRune(line, 0) {
			require.Equal(t, pgconf.Invalid, got.Kind)
			continue
		}
		require.Equal(t, said[file], want, "%.200q", line)
	}
}

func FuzzParse(f *testing.F) {
	for _, line := range odd() {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		line, _, _ = strings.Cut(line, "\n")
		got := pgconf.Parse(line)
		if got.Kind != pgconf.Setting {
			return
		}
		again := pgconf.Parse(pgconf.Quote(got.Name, got.Value))
		if again != got {
			t.Fatalf("%q: %+v, written anew %+v", line, got, again)
		}
		if kind := pgconf.Parse("# catalog-backup restore: " + line).Kind; kind != pgconf.Blank {
			t.Fatalf("%q is not out of force behind a comment sign", line)
		}
	})
}
