package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// during is a Progress that calls a function once, in the middle of the first large
// file's reading.
type during struct {
	stage.NoProgress
	once sync.Once
	f    func()
}

func (d *during) Add(n int64) {
	if n > 0 {
		d.once.Do(d.f)
	}
}

// disturbed backs up a directory with the one file "f" of 4 MiB, to which f happens
// while it is read.
func disturbed(t *testing.T, f func(path string)) (string, string, *set.Files, stage.Findings) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "app")
	write(t, root+"/f", noise(4<<20), 0644)
	write(t, root+"/g", []byte("after"), 0644)
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	files := &set.Files{}
	found, err := AddFiles(context.Background(), w, FilesOptions{Paths: []string{root}}, &during{f: func() { f(root + "/f") }}, recordIn(files))
	require.NoError(t, err)
	_, err = w.Finish()
	require.NoError(t, err)
	require.Empty(t, verify(t, path, files))
	run(t, "tar", "-tzf", path)
	return root, path, files, found
}

func record(t *testing.T, files *set.Files, path string) set.File {
	t.Helper()
	n := 0
	var out set.File
	for _, f := range files.Entries {
		if f.Path == path {
			out, n = f, n+1
		}
	}
	require.Equal(t, 1, n, "recorded once: %s", path)
	return out
}

func TestFileThatChangesOnce(t *testing.T) {
	for what, f := range map[string]func(string){
		"grows": func(p string) {
			g, _ := os.OpenFile(p, os.O_APPEND|os.O_WRONLY, 0)
			g.Write(noise(100000))
			g.Close()
		},
		"shrinks":    func(p string) { os.Truncate(p, 1000) },
		"is emptied": func(p string) { os.Truncate(p, 0) },
		"is written over": func(p string) {
			g, _ := os.OpenFile(p, os.O_WRONLY, 0)
			g.WriteAt([]byte("!"), 4<<20-1)
			g.Close()
		},
	} {
		t.Run(what, func(t *testing.T) {
			root, path, files, found := disturbed(t, f)
			require.Empty(t, found.Warnings, "read again and good")
			require.NotEmpty(t, found.Notes)
			rec := record(t, files, root+"/f")
			require.Empty(t, rec.Changed)
			want := must(os.ReadFile(root + "/f"))
			require.Equal(t, int64(len(want)), rec.Size)
			dir, _ := extract(t, path)
			require.True(t, bytes.Equal(want, must(os.ReadFile(dir+"/files"+root+"/f"))))
			gnu := t.TempDir()
			run(t, "tar", "-xzf", path, "-C", gnu)
			require.True(t, bytes.Equal(want, must(os.ReadFile(gnu+"/files"+root+"/f"))), "the last entry counts for GNU tar too")
		})
	}
}

func TestFileThatVanishes(t *testing.T) {
	root, _, files, found := disturbed(t, func(p string) { os.Remove(p) })
	require.Empty(t, found.Warnings)
	require.Equal(t, vanished, record(t, files, root+"/f").Changed)
	require.Equal(t, int64(4<<20), record(t, files, root+"/f").Size)

	root, _, files, found = disturbed(t, func(p string) { os.Truncate(p, 10); os.Remove(p); unix.Mkfifo(p, 0600) })
	require.Len(t, found.Warnings, 1)
	require.Contains(t, found.Warnings[0], "changed while they were read and were removed")
	require.Equal(t, shrunk, record(t, files, root+"/f").Changed, "torn, not just gone")

	root, _, files, found = disturbed(t, func(p string) {
		g, _ := os.OpenFile(p, os.O_WRONLY, 0)
		g.WriteAt([]byte("!"), 4<<20-1)
		g.Close()
		os.Remove(p)
	})
	require.Len(t, found.Warnings, 1)
	require.Equal(t, changed, record(t, files, root+"/f").Changed)

	root, path, files, found := disturbed(t, func(p string) { os.Truncate(p, 10); os.Remove(p); os.Symlink("g", p) })
	require.Empty(t, found.Warnings)
	require.Equal(t, "symlink", record(t, files, root+"/f").Kind)
	dir, _ := extract(t, path)
	require.Equal(t, "after", string(must(os.ReadFile(dir+"/files"+root+"/f"))))
}

func TestFileReplacedByAnother(t *testing.T) {
	root, path, files, found := disturbed(t, func(p string) {
		os.Truncate(p, 10)
		os.WriteFile(p+".new", []byte("new"), 0644)
		os.Rename(p+".new", p)
	})
	require.Empty(t, found.Warnings)
	require.Empty(t, record(t, files, root+"/f").Changed)
	dir, _ := extract(t, path)
	require.Equal(t, "new", string(must(os.ReadFile(dir+"/files"+root+"/f"))))
}

// A log that never stands still is stored, as it was at some moment, with a
// warning. On a busy machine the log may stand still in one of the reads after all.
func TestFileThatAlwaysChanges(t *testing.T) {
	for range 30 {
		root, files, found := alwaysChanging(t)
		if len(found.Warnings) == 0 {
			continue
		}
		require.Len(t, found.Warnings, 1)
		require.Contains(t, found.Warnings[0], "changed in both reads")
		require.Contains(t, found.Warnings[0], root+"/f")
		rec := record(t, files, root+"/f")
		require.Equal(t, grown, rec.Changed)
		require.NotEmpty(t, rec.SHA256)
		return
	}
	t.Fatal("the log was never caught changing in both reads")
}

// alwaysChanging stores a file while a goroutine appends to it all the time.
func alwaysChanging(t *testing.T) (string, *set.Files, stage.Findings) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	root, _, files, found := disturbed(t, func(p string) {
		f, err := os.OpenFile(p, os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		f.Write([]byte("one line\n"))
		go func() {
			defer close(stopped)
			defer f.Close()
			for {
				select {
				case <-stop:
					return
				default:
					f.Write([]byte("one line\n"))
				}
			}
		}()
	})
	close(stop)
	<-stopped
	return root, files, found
}

// The names of a file that was read twice stay names of one file.
func TestHardLinksOfAFileReadTwice(t *testing.T) {
	root := filepath.Join(t.TempDir(), "app")
	write(t, root+"/f", noise(1<<20), 0644)
	require.NoError(t, os.Link(root+"/f", root+"/h1"))
	require.NoError(t, os.Link(root+"/f", root+"/h2"))
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	files := &set.Files{}
	p := &during{f: func() {
		g, _ := os.OpenFile(root+"/f", os.O_WRONLY, 0)
		g.WriteAt([]byte("torn"), 0)
		g.Close()
	}}
	_, err = AddFiles(context.Background(), w, FilesOptions{Paths: []string{root}}, p, recordIn(files))
	require.NoError(t, err)
	_, err = w.Finish()
	require.NoError(t, err)
	require.Empty(t, verify(t, path, files))
	dir, _ := extract(t, path)
	gnu := t.TempDir()
	run(t, "tar", "-xzf", path, "-C", gnu)
	for _, d := range []string{dir, gnu} {
		got := shapes(t, d+"/files"+root)
		require.Equal(t, shapes(t, root)["f"].Content, got["f"].Content)
		for _, name := range []string{"h1", "h2"} {
			require.Equal(t, got["f"].Content, got[name].Content)
			require.Equal(t, "f", got[name].First, "%s of %s", name, d)
		}
	}
}

// Between the walk's look and the opening, a file may become anything.
func TestSwappedBeforeOpening(t *testing.T) {
	root := t.TempDir()
	dir, err := os.Open(root)
	require.NoError(t, err)
	defer dir.Close()
	for what, swap := range map[string]func(p string){
		"pipe":    func(p string) { require.NoError(t, unix.Mkfifo(p, 0600)) },
		"socket":  func(p string) { require.NoError(t, unix.Mknod(p, unix.S_IFSOCK|0600, 0)) },
		"link":    func(p string) { require.NoError(t, os.Symlink("/etc/passwd", p)) },
		"dir":     func(p string) { require.NoError(t, os.Mkdir(p, 0700)) },
		"nothing": func(string) {},
	} {
		for _, size := range []int{10, 1 << 20} {
			p := filepath.Join(root, what)
			require.NoError(t, os.RemoveAll(p))
			write(t, p, noise(size), 0600)
			n := &node{path: p, root: root, rel: what, at: newDirHandle(dir), base: what}
			n.st, err = statAt(int(dir.Fd()), what)
			require.NoError(t, err)
			require.NoError(t, os.Remove(p))
			swap(p)
			out := filepath.Join(t.TempDir(), "a.tar.gz")
			w, err := Create(out, Options{})
			require.NoError(t, err)
			a := newAdder(w, nil)
			files := &set.Files{}
			a.first = func(f set.File) error { files.Entries = append(files.Entries, f); return nil }
			a.entry = func(n *node) string { return entryName(set.FilesPrefix, n.path) }
			var s *smallFile
			if size < smallEntry {
				s = readSmall(n, make([]byte, smallEntry))
			}
			require.NoError(t, a.add(context.Background(), n, s))
			if err := a.readAgain(context.Background()); what == "dir" {
				require.ErrorIs(t, err, errOtherKind)
				continue
			} else {
				require.NoError(t, err)
			}
			_, err = w.Finish()
			require.NoError(t, err)
			require.Empty(t, verify(t, out, files), what)
			f := a.said.findings()
			require.Empty(t, f.Warnings, what)
			require.NotEmpty(t, f.Notes)
			require.LessOrEqual(t, len(files.Entries), 1)
			if what == "link" {
				require.Equal(t, "symlink", files.Entries[0].Kind)
			}
		}
	}
}

// Files come and go all over the tree while it is walked: whatever is stored is whole.
func TestBusyTree(t *testing.T) {
	root := filepath.Join(t.TempDir(), "app")
	for _, d := range []string{"a", "b", "c"} {
		for i := range 40 {
			write(t, filepath.Join(root, d, string(rune('A'+i))), noise(i*5000), 0644)
		}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			p := filepath.Join(root, "b", string(rune('A'+i%40)))
			switch i % 6 {
			case 0:
				os.Remove(p)
			case 1:
				os.WriteFile(p, noise(100000), 0644)
			case 2:
				os.Rename(filepath.Join(root, "c"), filepath.Join(root, "d"))
			case 3:
				os.Rename(filepath.Join(root, "d"), filepath.Join(root, "c"))
			case 4:
				os.Remove(p)
				os.Symlink("x", p)
			case 5:
				os.RemoveAll(filepath.Join(root, "b", "tmp"))
				os.Mkdir(filepath.Join(root, "b", "tmp"), 0755)
				os.WriteFile(filepath.Join(root, "b", "tmp", string(rune('A'+i%3))), nil, 0644)
			}
		}
	}()
	for range 10 {
		path, files, _ := backup(t, FilesOptions{Paths: []string{root}})
		require.Empty(t, verify(t, path, files))
		each(t, path, func(*Header, io.Reader) {})
		extract(t, path)
	}
	close(stop)
	<-stopped
}

func TestCancelledWalk(t *testing.T) {
	root := filepath.Join(t.TempDir(), "app")
	for i := range 600 {
		write(t, filepath.Join(root, string(rune('a'+i))), noise(100), 0644)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	n := 0
	_, err := AddFiles(ctx, mustCreate(t), FilesOptions{Paths: []string{root}}, nil, func(set.File) error {
		if n++; n == 100 {
			cancel(io.ErrClosedPipe)
		}
		return nil
	})
	require.ErrorIs(t, err, io.ErrClosedPipe)
	_, err = AddFiles(context.Background(), mustCreate(t), FilesOptions{Paths: []string{root}}, nil, func(set.File) error { return io.ErrShortBuffer })
	require.ErrorIs(t, err, io.ErrShortBuffer)
}

// A disk that gives errors: with AllowUnreadable zeros take the place of what can't be
// read, the archive stays valid, and the record says so. A file open for writing
// only stands for the bad disk: every read of it fails.
func TestReadErrorInTheMiddle(t *testing.T) {
	p := filepath.Join(t.TempDir(), "f")
	write(t, p, noise(1000), 0644)
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	h := &Header{Size: 1000}
	c := newContent(f, h, true, func(int64) {})
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, make([]byte, 1000), b)
	require.Error(t, c.fault)
	_, err = io.ReadAll(newContent(f, h, false, func(int64) {}))
	require.Error(t, err)
}

// Times that no other part of the program can hold do not fail the backup.
func TestTimesBeyondJSON(t *testing.T) {
	root := tmpfs(t, "1m")
	for i, sec := range []int64{1 << 60, -(1 << 60), 253402300800} {
		write(t, filepath.Join(root, string(rune('a'+i))), nil, 0600)
		setTime(t, filepath.Join(root, string(rune('a'+i))), sec, 0)
	}
	path, files, _ := backup(t, FilesOptions{Paths: []string{root}})
	_, err := json.Marshal(files)
	require.NoError(t, err)
	require.Empty(t, verify(t, path, files))
	extract(t, path)
}
