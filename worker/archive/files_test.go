package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// recordIn keeps records as the manifest does: a later one of a path counts.
func recordIn(files *set.Files) func(set.File) error {
	at := map[string]int{}
	return func(f set.File) error {
		key := f.Path + "\x00" + f.PathBytes
		if i, ok := at[key]; ok {
			files.Entries[i] = f
			return nil
		}
		at[key] = len(files.Entries)
		files.Entries = append(files.Entries, f)
		return nil
	}
}

// backup stores files and gives the archive's path and the manifest's part.
func backup(t *testing.T, o FilesOptions) (string, *set.Files, stage.Findings) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "files.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	files := &set.Files{}
	found, err := AddFiles(context.Background(), w, o, stage.NoProgress{}, recordIn(files))
	require.NoError(t, err)
	_, err = w.Finish()
	require.NoError(t, err)
	return path, files, found
}

// each reads an archive to its end.
func each(t *testing.T, path string, use func(h *Header, r io.Reader)) {
	t.Helper()
	r, err := Open(path)
	require.NoError(t, err)
	defer r.Close()
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		use(h, r)
	}
	_, err = r.Finish()
	require.NoError(t, err)
}

func verify(t *testing.T, path string, files *set.Files) []set.Damage {
	t.Helper()
	return verifyIn(t, path, files, true)
}

// verifyIn verifies in an archive that is intact or not.
func verifyIn(t *testing.T, path string, files *set.Files, intact bool) []set.Damage {
	t.Helper()
	var found []set.Damage
	list := &List{}
	for i := range files.Entries {
		require.NoError(t, list.Add(&files.Entries[i]))
	}
	v := NewVerifier(list, func(d set.Damage) { found = append(found, d) })
	each(t, path, func(h *Header, r io.Reader) { require.NoError(t, v.Entry(h, r)) })
	require.NoError(t, v.Finish(intact))
	return found
}

func extract(t *testing.T, path string) (string, stage.Findings) {
	t.Helper()
	dir := t.TempDir()
	x, err := NewExtractor(dir, ExtractOptions{})
	require.NoError(t, err)
	check := NewChecker()
	each(t, path, func(h *Header, r io.Reader) {
		require.NoError(t, check.Check(h))
		require.NoError(t, x.Entry(h, r))
	})
	found, err := x.Finish()
	require.NoError(t, err)
	return dir, found
}

// below are the records without the directories that lead to the configured paths.
func below(files *set.Files) []set.File {
	return slices.DeleteFunc(slices.Clone(files.Entries), func(f set.File) bool { return f.Parent })
}

func names(files *set.Files) []string {
	var out []string
	for _, f := range below(files) {
		out = append(out, f.Path)
	}
	return out
}

func TestEverythingComesBack(t *testing.T) {
	root := filepath.Join(t.TempDir(), "app")
	nastyTree(t, root)
	path, files, found := backup(t, FilesOptions{Paths: []string{root}})
	require.Empty(t, found.Warnings)
	require.Len(t, found.Notes, 2)
	require.Contains(t, strings.Join(found.Notes, "\n"), "devices left out: 1")
	require.Contains(t, strings.Join(found.Notes, "\n"), "sockets and pipes left out: 2")
	require.Empty(t, verify(t, path, files))
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Less(t, st.Size(), int64(8<<20))

	for _, n := range []string{"pipe", "device", "socket"} {
		require.NoError(t, os.Remove(filepath.Join(root, n)))
	}
	setTime(t, root, 1200000000, 3)
	want := shapes(t, root)
	require.Len(t, below(files), len(want))

	dir, found := extract(t, path)
	require.Empty(t, found.Warnings)
	require.Empty(t, found.Notes)
	require.Equal(t, want, shapes(t, dir+"/files"+root))
	sparseToo(t, root, dir+"/files"+root)

	run(t, "gzip", "-t", path)
	gnu := t.TempDir()
	// By the command that the page tells: with --acls, tar 1.34 would leave access lists out.
	told := regexp.MustCompile(`(?m)^tar -xzpf \S+_alation_backup.tar.gz (.*)$`).FindSubmatch(must(os.ReadFile("../../docs/set-format.md")))
	require.NotNil(t, told)
	run(t, "tar", append([]string{"-xzpf", path, "-C", gnu, "--warning=no-timestamp"}, strings.Fields(strings.ReplaceAll(string(told[1]), "'", ""))...)...)
	got := shapes(t, gnu+"/files"+root)
	for name, s := range want {
		g := got[name]
		if s.Xattrs["trusted.link"] != "" || strings.Contains(fmt.Sprint(s.Xattrs), "odd name") {
			s.Xattrs, g.Xattrs = nil, nil // GNU tar 1.34 sets none on links, and not odd names
		}
		require.Equal(t, s, g, "GNU tar: %q", name)
	}
	sparseToo(t, root, gnu+"/files"+root)

	bsd := t.TempDir()
	run(t, "bsdtar", "-xzf", path, "-C", bsd, "--exclude", "*terabyte", "--no-xattrs")
	for name, s := range shapes(t, bsd+"/files"+root) {
		require.Equal(t, want[name].Content, s.Content, "bsdtar: %q", name)
		require.Equal(t, want[name].Target, s.Target, "bsdtar: %q", name)
	}
}

// sparseToo compares how much disk the sparse files take, and the data of the huge one.
func sparseToo(t *testing.T, a, b string) {
	t.Helper()
	for _, name := range []string{"sparse", "sparse-end", "sparse-\xe9", "all-hole", "terabyte"} {
		var x, y unix.Stat_t
		require.NoError(t, unix.Stat(a+"/"+name, &x))
		require.NoError(t, unix.Stat(b+"/"+name, &y))
		require.Equal(t, x.Size, y.Size)
		require.InDelta(t, x.Blocks, y.Blocks, 16, name)
	}
	for _, at := range []int64{1 << 30, 1 << 39} {
		var p, q [5000]byte
		for _, x := range []struct {
			root string
			b    []byte
		}{{a, p[:]}, {b, q[:]}} {
			f, err := os.Open(x.root + "/terabyte")
			require.NoError(t, err)
			_, err = f.ReadAt(x.b, at)
			require.NoError(t, err)
			f.Close()
		}
		require.Equal(t, p, q)
	}
}

func TestHashIsThatOfTheFile(t *testing.T) {
	root := filepath.Join(t.TempDir(), "app")
	nastyTree(t, root)
	_, files, _ := backup(t, FilesOptions{Paths: []string{root}})
	for _, f := range files.Entries {
		path, err := bytesOf(f.Path, f.PathBytes)
		require.NoError(t, err)
		if f.Kind != "file" || strings.HasSuffix(path, "terabyte") {
			continue
		}
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		sum := sha256.Sum256(b)
		require.Equal(t, hex.EncodeToString(sum[:]), f.SHA256, path)
		require.Equal(t, int64(len(b)), f.Size)
		require.Empty(t, f.SHA256Of)
	}
}

func TestVerifierFindsEveryDifference(t *testing.T) {
	root := filepath.Join(t.TempDir(), "app")
	nastyTree(t, root)
	path, files, _ := backup(t, FilesOptions{Paths: []string{root}})
	find := func(name string) *set.File {
		for i := range files.Entries {
			if strings.HasSuffix(files.Entries[i].Path, "/"+name) {
				return &files.Entries[i]
			}
		}
		t.Fatal(name)
		return nil
	}
	for what, change := range map[string]func(){
		"size":    func() { find("plain").Size++ },
		"SHA-256": func() { find("large-text").SHA256 = strings.Repeat("0", 64) },
		"content": func() { find("terabyte").SHA256 = strings.Repeat("0", 64) },
		"mode":    func() { find("empty").Mode = "0644" },
		"owner":   func() { find("sub").UID++ },
		"group":   func() { find("link").GID++ },
		"time":    func() { find("plain").ModTime = find("plain").ModTime.Add(1) },
		"target":  func() { find("link").Target = "x" },
		"kind":    func() { find("empty-dir").Kind = "file" },
		"missing": func() { files.Entries = append(files.Entries, set.File{Path: root + "/none-such", Kind: "dir"}) },
		"not in the manifest": func() {
			files.Entries = append([]set.File{}, files.Entries[1:]...)
		},
	} {
		was := append([]set.File{}, files.Entries...)
		change()
		found := verify(t, path, files)
		require.NotEmpty(t, found, what)
		require.Contains(t, found[0].Problem, what)
		files.Entries = was
	}
	require.Empty(t, verify(t, path, files))
}

func TestUnreadable(t *testing.T) {
	root := filepath.Join(t.TempDir(), "app")
	write(t, root+"/a", []byte("a"), 0600)
	write(t, root+"/b/c", noise(200000), 0644)
	write(t, root+"/d", noise(200000), 0600)
	write(t, root+"/e", []byte("e"), 0644)
	require.NoError(t, os.Chmod(root+"/b", 0700))
	asUser(t, "TestUnreadableAsUser", root)
}

func TestUnreadableAsUser(t *testing.T) {
	root := os.Getenv(childRoot)
	if root == "" {
		return
	}
	_, err := AddFiles(context.Background(), mustCreate(t), FilesOptions{Paths: []string{root}}, nil, func(set.File) error { return nil })
	require.True(t, stage.IsPermanent(err))
	require.ErrorContains(t, err, root+"/a")
	require.ErrorContains(t, err, "allow_unreadable")

	path, files, found := backup(t, FilesOptions{Paths: []string{root}, AllowUnreadable: true})
	require.Len(t, found.Warnings, 1)
	for _, name := range []string{"/a", "/b", "/d"} {
		require.Contains(t, found.Warnings[0], root+name)
	}
	require.Equal(t, []string{root, root + "/a", root + "/b", root + "/d", root + "/e"}, names(files))
	require.Equal(t, unreadable, below(files)[1].Changed)
	require.Equal(t, unreadable, below(files)[2].Changed)
	require.Empty(t, below(files)[3].SHA256)
	require.Empty(t, verify(t, path, files))
}

// Nobody restores what root has stored: owners, setuid and trusted attributes can't be
// kept, which is a note, and the contents are all there.
func TestRestoreAsUser(t *testing.T) {
	if root := os.Getenv(childRoot); root != "" {
		dir, found := extract(t, root+"/a.tar.gz")
		require.Empty(t, found.Warnings)
		require.Contains(t, strings.Join(found.Notes, "\n"), "owners not kept")
		require.Contains(t, strings.Join(found.Notes, "\n"), "setuid")
		require.Equal(t, "x", string(must(os.ReadFile(dir+"/files"+root+"/app/setuid"))))
		st, err := os.Stat(dir + "/files" + root + "/app/setuid")
		require.NoError(t, err)
		require.Zero(t, st.Mode()&os.ModeSetuid)
		run(t, "chmod", "-R", "u+rwx", dir)
		return
	}
	dir := t.TempDir()
	nastyTree(t, dir+"/app")
	path, _, _ := backup(t, FilesOptions{Paths: []string{dir + "/app"}})
	require.NoError(t, os.WriteFile(dir+"/a.tar.gz", must(os.ReadFile(path)), 0644))
	asUser(t, "TestRestoreAsUser", dir)
}

// A view of the kernel is not entered.
func TestPseudoFileSystem(t *testing.T) {
	_, files, found := backup(t, FilesOptions{Paths: []string{"/proc"}})
	require.Equal(t, []string{"/proc"}, names(files))
	require.Len(t, found.Notes, 1)
}

func mustCreate(t *testing.T) *Writer {
	t.Helper()
	w, err := Create(filepath.Join(t.TempDir(), "x.tar.gz"), Options{})
	require.NoError(t, err)
	t.Cleanup(w.Abort)
	return w
}

func TestManySmallFilesAndDeepTree(t *testing.T) {
	root := filepath.Join(t.TempDir(), "app")
	for d := range 20 {
		dir := fmt.Sprintf("%s/many/%02d", root, d)
		require.NoError(t, os.MkdirAll(dir, 0755))
		for i := range 250 {
			require.NoError(t, os.WriteFile(fmt.Sprintf("%s/%d", dir, i), []byte(fmt.Sprint(d, i)), 0644))
		}
	}
	// Far deeper than PATH_MAX, with a file on each level that sorts after the directory.
	at, err := os.Open(root)
	require.NoError(t, err)
	const levels = 300
	for i := range levels {
		name := "d" + strings.Repeat("x", 30)
		require.NoError(t, unix.Mkdirat(int(at.Fd()), name, 0755))
		next, err := openDirAt(int(at.Fd()), name)
		require.NoError(t, err)
		fd, err := unix.Openat(int(next.Fd()), "z", unix.O_CREAT|unix.O_WRONLY, 0644)
		require.NoError(t, err)
		_, err = unix.Write(fd, []byte(fmt.Sprint(i)))
		require.NoError(t, err)
		unix.Close(fd)
		at.Close()
		at = next
	}
	at.Close()
	path, files, found := backup(t, FilesOptions{Paths: []string{root}})
	require.Empty(t, found.Warnings)
	require.Len(t, below(files), 2+20*251+2*levels)
	require.Empty(t, verify(t, path, files))
	dir, _ := extract(t, path)
	again, files2, _ := backup(t, FilesOptions{Paths: []string{dir + "/files" + root}})
	was, is := below(files), below(files2)
	require.Len(t, is, len(was))
	for i := range was {
		require.Equal(t, was[i].SHA256, is[i].SHA256)
		require.Equal(t, was[i].ModTime, is[i].ModTime)
	}
	require.Empty(t, verify(t, again, files2))
}
