package restore

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
	"catalog-backup/worker/backup"
)

// printed is what `worker restore --json` prints.
type printed struct {
	Set      string
	Target   string
	Parts    []string
	Postgres *struct {
		DataDirectory string `json:"data_directory"`
		Start         string
	}
	EventBus *Loaded
	Notes    []string
	Warnings []string
	Damage   []Damage
	Error    *string
}

func (r *real) restore(t testing.TB, args ...string) printed {
	t.Helper()
	v := r.restored(t, 0, args...)
	require.Empty(t, v.Warnings)
	return v
}

// warned is restore where there is something to warn of.
func (r *real) warned(t testing.TB, args ...string) printed {
	t.Helper()
	v := r.restored(t, 10, args...)
	require.NotEmpty(t, v.Warnings)
	return v
}

func (r *real) restored(t testing.TB, want int, args ...string) printed {
	t.Helper()
	out, errs, code := r.run(t, append([]string{"restore", "--json"}, args...)...)
	require.Equal(t, want, code, "%s %s", out, errs)
	var v printed
	require.NoError(t, json.Unmarshal([]byte(out), &v))
	require.Nil(t, v.Error)
	return v
}

// serve starts the restored server with the printed command and gives a function
// that asks it.
func serve(t testing.TB, v printed) func(sql string) string {
	t.Helper()
	t.Cleanup(func() {
		_ = exec.Command("sh", "-c", strings.Replace(v.Postgres.Start, " -w start", " -m immediate -w stop", 1)).Run()
	})
	out, err := exec.Command("sh", "-c", v.Postgres.Start).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(v.Target, "postgres/server.log"))
		t.Fatalf("%s: %v: %s\n%s", v.Postgres.Start, err, out, log)
	}
	as, err := lab.PostgresUser()
	require.NoError(t, err)
	bin, err := lab.PGBinDir()
	require.NoError(t, err)
	ask := func(sql string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", filepath.Join(v.Target, "postgres/socket"),
			"-p", "5432", "-U", "postgres", "-d", "postgres", "-c", sql)
		cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin"}
		if as != nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return strings.TrimSpace(string(out))
	}
	require.Eventually(t, func() bool { return ask("select pg_is_in_recovery()") == "f" }, 20*time.Second, 50*time.Millisecond)
	return ask
}

// tree describes every file below dir: kind, mode, owner, time, content, links, attributes.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	first := map[uint64]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(path, &st))
		rel, _ := filepath.Rel(dir, path)
		text := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(path)
			text += " -> " + to
		case d.Type().IsRegular():
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			value := make([]byte, 100)
			n, _ := unix.Getxattr(path, "user.origin", value)
			if st.Nlink > 1 && first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			text += fmt.Sprintf(" %x %q =%s sparse:%v", sha(content), value[:max(n, 0)], first[st.Ino], st.Size > 1<<20 && st.Blocks*512 < st.Size/2)
		}
		out[rel] = text
		return nil
	}))
	return out
}

func TestRestoreEverything(t *testing.T) {
	dir, _ := source.copyOf(t)
	above := scratch(t)
	passOn(t, above)
	target := filepath.Join(above, "not", "there", "yet")
	v := source.restore(t, source.manifest(dir), "--target", target)
	noACL(t, target)
	require.NoError(t, os.RemoveAll(dir)) // nothing but the target may be needed
	require.Equal(t, []string{PostgresPart, FilesPart, EventBusPart}, v.Parts)

	require.Equal(t, tree(t, source.app), tree(t, filepath.Join(target, "files", source.app)))
	require.NoDirExists(t, filepath.Join(target, stagingName))
	require.FileExists(t, filepath.Join(target, "eventbus/topics/lineage/1/00000000000000000000.log"))
	conf, err := os.ReadFile(filepath.Join(target, "postgres/config", source.extra))
	require.NoError(t, err)
	require.Contains(t, string(conf), "work_mem")
	m, err := set.ReadManifest(filepath.Join(target, "set.json"))
	require.NoError(t, err)
	require.Equal(t, source.set, m.Set)

	ask := serve(t, v)
	require.Equal(t, source.rows, ask(rowsDigest))
	require.Equal(t, "off", ask("show archive_mode"))
	require.True(t, strings.HasPrefix(ask("select pg_tablespace_location(oid) from pg_tablespace where spcname='spaced'"), filepath.Join(target, "postgres/tablespaces/")))
}

// The archives alone are enough, and each alone for its parts.
func TestRestoreFromArchivesAlone(t *testing.T) {
	dir, _ := source.copyOf(t)
	require.NoError(t, os.Remove(source.manifest(dir)))
	main, bus := filepath.Join(dir, source.id().MainName()), filepath.Join(dir, source.id().EventBusName())

	r := verified(t, main)
	require.Empty(t, r.Damage)
	require.Contains(t, strings.Join(r.Notes, "\n"), "could not be checked")
	v := source.restore(t, source.set, "--dir", dir, "--target", filepath.Join(scratch(t), "all"))
	require.Equal(t, source.rows, serve(t, v)(rowsDigest))
	require.Contains(t, strings.Join(v.Notes, "\n"), "copy in the archive is used")

	renamed := filepath.Join(scratch(t), "events.tgz")
	require.NoError(t, os.Rename(bus, renamed))
	r = verified(t, main)
	require.Empty(t, r.Damage)
	require.Contains(t, strings.Join(r.Notes, "\n"), source.id().EventBusName()+" is not beside the archive")
	require.Empty(t, verified(t, renamed).Damage)

	v = source.restore(t, renamed, "--only", "eventbus", "--target", filepath.Join(scratch(t), "bus"))
	require.Nil(t, v.Postgres)
	require.DirExists(t, filepath.Join(v.Target, "eventbus/topics/lineage/0"))
	require.NoDirExists(t, filepath.Join(v.Target, "postgres"))
	v = source.restore(t, main, "--only", "files", "--target", filepath.Join(scratch(t), "files"))
	require.Equal(t, tree(t, source.app), tree(t, filepath.Join(v.Target, "files", source.app)))
	require.NoDirExists(t, filepath.Join(v.Target, "eventbus"))

	out, errs, code := source.run(t, "restore", main, "--target", filepath.Join(dir, "new"))
	require.Equal(t, 8, code, out)
	require.Contains(t, errs, "missing")
	require.Contains(t, errs, "--only postgres,files")
	require.NoDirExists(t, filepath.Join(dir, "new"))
}

// A damaged copy of the manifest in one archive, or a damaged manifest, does not
// keep the rest from being found.
func TestDamagedManifest(t *testing.T) {
	dir, _ := source.copyOf(t)
	text, err := os.ReadFile(source.manifest(dir))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(source.manifest(dir), text[:len(text)/2], 0o600))
	out, _, code := source.run(t, "verify", source.manifest(dir), "--json")
	require.Equal(t, 8, code)
	require.Contains(t, out, `"good": false`)
	s, err := Open(t.Context(), filepath.Join(dir, source.id().EventBusName()), "")
	require.NoError(t, err)
	r, err := Verify(t.Context(), s, VerifyOptions{})
	require.NoError(t, err)
	require.Len(t, r.Damage, 1, "%v", r.Damage)
	v := source.restore(t, filepath.Join(dir, source.id().MainName()), "--only", "eventbus,files", "--target", filepath.Join(scratch(t), "new"))
	require.Contains(t, strings.Join(v.Notes, "\n"), "is damaged: its copy")

	require.NoError(t, os.WriteFile(source.manifest(dir), []byte(strings.Replace(string(text), `"version": 1,`, `"version": 2,`, 1)), 0o600))
	for _, verb := range [][]string{{"verify"}, {"restore", "--target", filepath.Join(dir, "new")}} {
		_, errs, code := source.run(t, append(verb, source.manifest(dir))...)
		require.Equal(t, 1, code)
		require.Contains(t, errs, "unknown manifest version 2")
	}
	require.NoDirExists(t, filepath.Join(dir, "new"))
}

func TestRestoreIntoBus(t *testing.T) {
	other := lab.Kfake(t, lab.KfakeOptions{})
	file := filepath.Join(t.TempDir(), "bus.yaml")
	require.NoError(t, os.WriteFile(file, []byte("eventbus:\n  brokers: ["+other.Brokers[0]+"]\n"), 0o600))
	v := source.restore(t, source.manifest(source.dump), "--only", "eventbus", "--bus", file, "--target", filepath.Join(scratch(t), "bus"))
	require.Equal(t, &Loaded{Topics: 2, Records: 300, Groups: 1}, v.EventBus)
	got, err := busDigest(other)
	require.NoError(t, err)
	require.Equal(t, source.record, got)

	// Now it has the topics.
	target := filepath.Join(scratch(t), "again")
	_, errs, code := source.run(t, "restore", source.manifest(source.dump), "--bus", other.Brokers[0], "--target", target)
	require.NotEqual(t, 0, code)
	require.Contains(t, errs, "topic")
	require.NoDirExists(t, target)
}

// Whatever is refused is refused before anything is written.
func TestRestoreRefusals(t *testing.T) {
	manifest := source.manifest(source.dump)
	full := scratch(t)
	require.NoError(t, os.WriteFile(filepath.Join(full, "mine"), []byte("x"), 0o600))
	unfinished := scratch(t)
	require.NoError(t, os.MkdirAll(filepath.Join(unfinished, stagingName), 0o700))
	closed := scratch(t)
	require.NoError(t, os.Chmod(closed, 0o700))
	damaged, m := source.copyOf(t)
	rewrite(t, damaged, set.EventBusArchive, m, func(l []item) []item { l[0].data[len(l[0].data)/2] ^= 1; return l }, nil)
	halved, _ := source.copyOf(t)
	require.NoError(t, os.Remove(filepath.Join(halved, source.id().EventBusName())))
	noBus, m := source.copyOf(t)
	m.Archives, m.EventBus = m.Archives[:1], nil
	rewrite(t, noBus, set.MainArchive, m, func(l []item) []item {
		m := *m
		m.Archives = []set.Archive{{Kind: set.MainArchive, Name: source.id().MainName()}}
		text, err := json.Marshal(&m)
		require.NoError(t, err)
		l[len(l)-1].h.Size, l[len(l)-1].data = int64(len(text)), text
		return l
	}, nil)
	require.Empty(t, verified(t, source.manifest(noBus)).Damage)

	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no target":          {[]string{manifest}, 2, "--target"},
		"not empty":          {[]string{manifest, "--target", full}, 2, "not empty"},
		"unfinished":         {[]string{manifest, "--target", unfinished}, 2, "not finished"},
		"empty part":         {[]string{manifest, "--target", "TARGET", "--only", ""}, 2, "names no part"},
		"a file":             {[]string{manifest, "--target", filepath.Join(full, "mine")}, 2, "not a directory"},
		"below a file":       {[]string{manifest, "--target", filepath.Join(full, "mine/x")}, 2, "not a directory"},
		"a quote":            {[]string{manifest, "--target", "TARGET'"}, 2, "plain path"},
		"unknown part":       {[]string{manifest, "--target", "TARGET", "--only", "files,redis"}, 2, "redis"},
		"part it has not":    {[]string{source.manifest(noBus), "--target", "TARGET", "--only", "eventbus"}, 7, "no part eventbus"},
		"bus and no events":  {[]string{source.manifest(noBus), "--target", "TARGET", "--bus", "127.0.0.1:1"}, 2, "--bus"},
		"bus, other part":    {[]string{manifest, "--target", "TARGET", "--only", "files", "--bus", "127.0.0.1:1"}, 2, "--bus"},
		"bus unreachable":    {[]string{manifest, "--target", "TARGET", "--bus", "127.0.0.1:1"}, 1, "127.0.0.1:1"},
		"bus without a port": {[]string{manifest, "--target", "TARGET", "--bus", "kafka"}, 2, "HOST:PORT"},
		"retention, no bus":  {[]string{manifest, "--target", "TARGET", "--final-retention"}, 2, "--bus"},
		"damaged":            {[]string{source.manifest(damaged), "--target", "TARGET"}, 8, "lineage"},
		"archive missing":    {[]string{source.manifest(halved), "--target", "TARGET"}, 8, "missing"},
		"no such set":        {[]string{"202001010000_1", "--dir", source.dump, "--target", "TARGET"}, 7, "202001010000_1"},
		"no such file":       {[]string{"/no/such.json", "--target", "TARGET"}, 7, "/no/such.json"},
		"no directory":       {[]string{source.set, "--target", "TARGET"}, 2, "--dir"},
		"a script":           {[]string{filepath.Join(source.dump, source.id().ScriptName()), "--target", "TARGET"}, 2, "instructions of a set"},
		"a directory":        {[]string{source.dump, "--target", "TARGET"}, 2, "is a directory"},
		"closed above":       {[]string{manifest, "--target", filepath.Join(closed, "below", "target")}, 1, "cannot enter " + closed},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "closed above" && os.Geteuid() != 0 {
				return // then the server runs as who restores
			}
			place := scratch(t)
			for i := range c.args {
				c.args[i] = strings.Replace(c.args[i], "TARGET", filepath.Join(place, "target"), 1)
			}
			out, errs, code := source.run(t, append([]string{"restore"}, c.args...)...)
			require.Equal(t, c.code, code, "%s %s", out, errs)
			require.Contains(t, errs, c.says)
			require.Empty(t, tree(t, place)["target"])
			require.Len(t, tree(t, full), 2)
			require.Len(t, tree(t, closed), 1)
		})
	}
}

func options(target string) Options {
	return Options{Target: target, Runner: backup.NewRunner(""), PgBackRest: "pgbackrest"}
}

// A set that would need more room than there is.
func TestRestoreTooLittleSpace(t *testing.T) {
	small := scratch(t)
	require.NoError(t, unix.Mount("none", small, "tmpfs", 0, "size=100m"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(small, 0)) })
	s, err := Open(t.Context(), source.manifest(source.dump), "")
	require.NoError(t, err)
	_, err = Restore(t.Context(), s, options(filepath.Join(small, "target")))
	require.ErrorContains(t, err, "bytes free")
	require.NoDirExists(t, filepath.Join(small, "target"))
}

func TestRestoreWithoutPgBackRest(t *testing.T) {
	s, err := Open(t.Context(), source.manifest(source.dump), "")
	require.NoError(t, err)
	o := options(filepath.Join(scratch(t), "target"))
	o.PgBackRest = "/no/pgbackrest"
	_, err = Restore(t.Context(), s, o)
	require.ErrorContains(t, err, "pgBackRest")
	require.NoDirExists(t, o.Target)
	o.Only = []string{FilesPart}
	_, err = Restore(t.Context(), s, o)
	require.NoError(t, err)
}

// Archives that somebody else made, to lead out of the target.
func TestRestoreHostileArchive(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"up":               {{Name: "files/../../../evil", Typeflag: tar.TypeReg}},
		"absolute":         {{Name: "/evil", Typeflag: tar.TypeReg}},
		"through a link":   {{Name: "files/out", Typeflag: tar.TypeSymlink, Linkname: "/"}, {Name: "files/out/evil", Typeflag: tar.TypeReg}},
		"hard link to out": {{Name: "files/passwd", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}},
		"device":           {{Name: "files/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"in the staging":   {{Name: ".restore/repo/x", Typeflag: tar.TypeReg}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, m := source.copyOf(t)
			path := filepath.Join(dir, source.id().MainName())
			list := items(t, path)
			f, err := os.Create(path)
			require.NoError(t, err)
			z := gzip.NewWriter(f)
			w := tar.NewWriter(z)
			for _, h := range entries {
				require.NoError(t, w.WriteHeader(&h))
				m.Files.Entries = append(m.Files.Entries, set.File{Path: strings.TrimPrefix(h.Name, "files"), Kind: "file", SHA256: strings.Repeat("0", 64), Mode: "0000"})
				m.Files.Count++
			}
			copied := *m
			copied.Archives = []set.Archive{{Kind: m.Archives[0].Kind, Name: m.Archives[0].Name}, {Kind: m.Archives[1].Kind, Name: m.Archives[1].Name}}
			text, err := json.Marshal(&copied)
			require.NoError(t, err)
			require.NoError(t, w.WriteHeader(&tar.Header{Name: set.ManifestCopy, Typeflag: tar.TypeReg, Size: int64(len(text))}))
			_, err = w.Write(text)
			require.NoError(t, errors.Join(err, w.Close(), z.Close(), f.Close()))
			signFile(t, dir, set.MainArchive, m)
			require.NotEmpty(t, list)

			s, err := Open(t.Context(), source.manifest(dir), "")
			require.NoError(t, err)
			place := scratch(t)
			o := options(filepath.Join(place, "a", "target"))
			o.Only = []string{FilesPart}
			_, err = Restore(t.Context(), s, o)
			var damaged *DamagedError
			require.ErrorAs(t, err, &damaged)
			require.Len(t, tree(t, place), 1)
			require.NoFileExists(t, "/evil")
		})
	}
}

// A target given empty may belong to root alone; the server gets through to its part.
func TestRestoreIntoGivenDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		return // the account that restores is the one that runs the server
	}
	target := scratch(t)
	require.NoError(t, os.Chmod(target, 0o700))
	passOn(t, target)
	v := source.restore(t, source.manifest(source.dump), "--only", "postgres", "--target", target)
	noACL(t, filepath.Join(target, "postgres"))
	require.Equal(t, source.rows, serve(t, v)(rowsDigest))
	require.NoDirExists(t, filepath.Join(target, "files"))
}

func TestVerifyReadOnlyPlace(t *testing.T) {
	dir, _ := source.copyOf(t)
	cmd := exec.Command(filepath.Join(source.bin, "worker"), "verify", source.manifest(dir), "--json")
	if os.Geteuid() == 0 { // who may write anywhere
		u, err := user.Lookup("nobody")
		require.NoError(t, err)
		uid, _ := strconv.Atoi(u.Uid)
		for name := range tree(t, dir) {
			if name != "." {
				require.NoError(t, os.Chown(filepath.Join(dir, name), uid, -1))
			}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: 65534}}
	}
	require.NoError(t, os.Chmod(dir, 0o555))
	out, err := cmd.Output()
	require.NoError(t, err)
	var r Report
	require.NoError(t, json.Unmarshal(out, &r))
	require.True(t, r.Good)
	require.Contains(t, strings.Join(r.Notes, "\n"), "proof")
	require.NoFileExists(t, filepath.Join(dir, source.id().ProofName()))
}

func TestVerbsVerifyAndList(t *testing.T) {
	dir, _ := source.copyOf(t)
	_, _, code := source.run(t, "verify", source.set, "--dir", dir)
	require.Equal(t, 0, code)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "201901010000_9-0_alation_backup.tar.gz"), []byte("older"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "202001010000_9-0_alation_backup.json"), []byte("{"), 0o600))
	out, _, code := source.run(t, "list", "--dir", dir)
	require.Equal(t, 0, code)
	require.Contains(t, out, "foreign: 201901010000_9-0_alation_backup.tar.gz")
	require.Contains(t, out, "problem: read manifest")
	out, _, code = source.run(t, "list", "--dir", dir, "--json")
	require.Equal(t, 0, code)
	var lines []map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &lines))
	require.Len(t, lines, 1)
	require.Len(t, lines[0], 7)
	require.Equal(t, source.set, lines[0]["set"])
	require.Equal(t, []any{filepath.Join(dir, source.id().MainName()), filepath.Join(dir, source.id().EventBusName())}, lines[0]["archives"])
	require.Equal(t, "verify", lines[0]["proof"].(map[string]any)["kind"])
	require.Equal(t, true, lines[0]["proof"].(map[string]any)["good"])

	require.NoError(t, os.Truncate(filepath.Join(dir, source.id().MainName()), 1<<20))
	out, errs, code := source.run(t, "verify", source.set, "--dir", dir, "--json")
	require.Equal(t, 8, code)
	require.Empty(t, errs)
	var r Report
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	require.NotEmpty(t, r.Damage)
	p, err := set.ReadProofs(dir, source.id())
	require.NoError(t, err)
	require.Len(t, p.Proofs, 2)
	require.False(t, p.Proofs[1].Good)
	_, _, code = source.run(t, "verify", filepath.Join(dir, "201901010000_9-0_alation_backup.tar.gz"))
	require.Equal(t, 8, code)
	_, _, code = source.run(t, "list", "--dir", "/no/such")
	require.Equal(t, 7, code)
}
