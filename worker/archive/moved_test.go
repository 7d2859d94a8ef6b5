package archive

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// midway stores the tree below dir/app, and calls f while the large file app/m/big is
// read: app/a is listed and read by then, app/z is neither.
func midway(t *testing.T, f func(app string)) (string, string, *set.Files, stage.Findings) {
	t.Helper()
	app, restored, files, found, err := midwayIn(t, "", f)
	require.NoError(t, err)
	return app, restored, files, found
}

// midwayIn is midway with app below dir, and with the error of the reading.
func midwayIn(t *testing.T, dir string, f func(app string)) (string, string, *set.Files, stage.Findings, error) {
	t.Helper()
	app := filepath.Join(t.TempDir(), dir, "app")
	write(t, app+"/a/one", []byte("one"), 0640)
	write(t, app+"/a/two", []byte("two"), 0640)
	write(t, app+"/a/deep/er/three", []byte("three"), 0640)
	write(t, app+"/m/big", noise(1<<20), 0640)
	many(t, app+"/n")
	write(t, app+"/z/four", []byte("four"), 0640)
	write(t, app+"/z/two", []byte("another two"), 0640)
	write(t, app+"/z/sub/five", []byte("five"), 0640)
	write(t, app+"/z/sub/er/six", []byte("six"), 0640)
	older()
	restored, files, found, err := storedMidway(t, app, f)
	return app, restored, files, found, err
}

// later is a clock by which nothing was changed just before it was listed.
func later() time.Time { return time.Now().Add(time.Minute) }

// storedMidway stores app, which has a file m/big, and unpacks it.
func storedMidway(t *testing.T, app string, f func(app string)) (string, *set.Files, stage.Findings, error) {
	t.Helper()
	path, files := filepath.Join(t.TempDir(), "a.tar.gz"), &set.Files{}
	w, err := Create(path, Options{})
	require.NoError(t, err)
	found, err := AddFiles(context.Background(), w, FilesOptions{Paths: []string{app}, Now: later}, &atBig{f: func() { f(app) }}, recordIn(files))
	if err != nil {
		return "", files, found, err
	}
	_, err = w.Finish()
	require.NoError(t, err)
	require.Empty(t, verify(t, path, files))
	require.Empty(t, verifyIn(t, path, files, false), "no hard link leads to what does not count any more")
	dir, _ := extract(t, path)
	return dir + "/files" + app, files, found, nil
}

// older waits until what there is now has another time than what is made from now on:
// a file's time may be some ticks of the clock off.
func older() {
	for at := coarse(); coarse().Sub(at) < 20*time.Millisecond; {
		runtime.Gosched()
	}
}

// many makes more than the walk runs ahead, so that it has not come to what follows.
func many(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0755))
	for i := range aheadItems + 20 {
		require.NoError(t, os.Symlink("x", filepath.Join(dir, strconv.Itoa(i))))
	}
}

// atBig is a Progress that calls a function in the middle of the first large file.
type atBig struct {
	stage.NoProgress
	f func()
}

func (p *atBig) Add(n int64) {
	if f := p.f; n >= smallEntry && f != nil {
		p.f = nil
		f()
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	require.NoError(t, os.Rename(from, to))
}

// Whatever is in the tree when the backup ends, and was in it when it began, is in the set.
func TestMovedWhileRead(t *testing.T) {
	for what, c := range map[string]struct {
		move func(app string)
		warn string // what a warning says; none: there is none
	}{
		"a file": {func(app string) { rename(t, app+"/z/four", app+"/a/four") }, "moved while the backup ran"},
		"a file into a new directory": {func(app string) {
			require.NoError(t, os.MkdirAll(app+"/a/new/er", 0755))
			rename(t, app+"/z/four", app+"/a/new/er/four")
		}, "er/four"},
		"a file, deep":             {func(app string) { rename(t, app+"/z/four", app+"/a/deep/er/four") }, "moved while the backup ran"},
		"a tree":                   {func(app string) { rename(t, app+"/z/sub", app+"/a/sub") }, "moved while the backup ran"},
		"a whole unread directory": {func(app string) { rename(t, app+"/z", app+"/a/z") }, "moved while the backup ran"},
		"over a file":              {func(app string) { rename(t, app+"/z/two", app+"/a/two") }, "moved while the backup ran"},
		"two files swapped": {func(app string) {
			rename(t, app+"/a/two", app+"/x")
			rename(t, app+"/z/two", app+"/a/two")
			rename(t, app+"/x", app+"/z/two")
		}, "moved while the backup ran"},
		"two directories swapped": {func(app string) {
			require.NoError(t, unix.Renameat2(unix.AT_FDCWD, app+"/a/deep", unix.AT_FDCWD, app+"/z/sub", unix.RENAME_EXCHANGE))
		}, "moved while the backup ran"},
		"within a directory": {func(app string) { rename(t, app+"/a/one", app+"/a/uno") }, ""},
		"a directory within": {func(app string) { rename(t, app+"/a/deep", app+"/a/deeper") }, ""},
		"rotated": {func(app string) {
			rename(t, app+"/a/one", app+"/a/one.1")
			require.NoError(t, os.WriteFile(app+"/a/one", []byte("new log"), 0640))
		}, ""},
		"replaced at once": {func(app string) {
			require.NoError(t, os.WriteFile(app+"/a/.two", []byte("new two"), 0640))
			rename(t, app+"/a/.two", app+"/a/two")
		}, ""},
		"from read to unread": {func(app string) { rename(t, app+"/a/one", app+"/z/one") }, ""},
		"made anew":           {func(app string) { write(t, app+"/a/new/file", []byte("new"), 0600) }, ""},
		"a link":              {func(app string) { require.NoError(t, os.Link(app+"/z/four", app+"/a/link")) }, "moved while the backup ran"},
		"a symbolic link":     {func(app string) { require.NoError(t, os.Symlink("../a", app+"/a/link")) }, ""},
		"from outside": {func(app string) {
			write(t, filepath.Dir(app)+"/outside/f", []byte("out"), 0600)
			rename(t, filepath.Dir(app)+"/outside", app+"/a/outside")
		}, ""},
		"from a file system to another": {func(app string) {
			run(t, "cp", "-a", app+"/z/four", app+"/a/four")
			require.NoError(t, os.Remove(app+"/z/four"))
		}, ""},
	} {
		t.Run(what, func(t *testing.T) {
			app, restored, files, found := midway(t, c.move)
			if c.warn == "" {
				require.Empty(t, found.Warnings)
			} else {
				require.Len(t, found.Warnings, 1+strings.Count(what, "directories swapped"), "%v", found)
				require.Contains(t, found.Warnings[0], c.warn)
			}
			was, is := shapes(t, app), shapes(t, restored)
			for name, s := range was {
				g, ok := is[name]
				require.True(t, ok, "%s is not in the set", name)
				s.First, g.First = "", ""
				if s.Kind == "40000" { // read before it changed
					s.Time, g.Time = "", ""
				}
				require.Equal(t, s, g, name)
			}
			seen := map[string]bool{}
			for _, f := range files.Entries {
				require.False(t, seen[f.Path], "%s is recorded twice", f.Path)
				seen[f.Path] = true
			}
		})
	}
}

// Across configured paths too; excluded stays excluded; a path that is another place
// is not stored a second time.
func TestMovedBetweenPlaces(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/x", []byte("x"), 0600)
	write(t, dir+"/m/big", noise(1<<20), 0600)
	many(t, dir+"/n")
	write(t, dir+"/z/sub/f", []byte("f"), 0600)
	write(t, dir+"/z/f.tmp", []byte("t"), 0600)
	older()
	files := &set.Files{}
	found, err := AddFiles(context.Background(), mustCreate(t), FilesOptions{Paths: []string{dir + "/a", dir + "/m", dir + "/n", dir + "/z"}, Exclude: []string{"*.tmp"}}, &atBig{f: func() {
		rename(t, dir+"/z/sub", dir+"/a/sub")
		rename(t, dir+"/z/f.tmp", dir+"/a/f.tmp")
	}}, recordIn(files))
	require.NoError(t, err)
	require.Len(t, found.Warnings, 1)
	require.Contains(t, names(files), dir+"/a/sub/f")
	require.NotContains(t, names(files), dir+"/a/f.tmp")
}

// A quiet tree is not listed twice, one that changed just before it was listed is, and
// the memory has a bound that is said.
func TestSecondListing(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/d/f", []byte("x"), 0600)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(dir+"/d", &st))
	changed := time.Unix(st.Mtim.Unix())
	s := newSeen(func() time.Time { return changed.Add(2*time.Second + time.Millisecond) })
	l := s.open(dir+"/d", dir, &st)
	require.False(t, l.changed(&st))
	s.now = func() time.Time { return changed.Add(2*time.Second - time.Millisecond) }
	require.True(t, s.open(dir+"/d", dir, &st).changed(&st), "within the granularity of the file system's times")
	require.NoError(t, os.Chmod(dir+"/d", 0711))
	require.NoError(t, unix.Stat(dir+"/d", &st))
	require.True(t, l.changed(&st), "the time of the status counts too")

	f, err := plant(FilesOptions{Paths: []string{dir}})
	require.NoError(t, err)
	f.walk.seen = newSeen(nil)
	f.walk.seen.most = 1
	require.NoError(t, f.each(context.Background(), func(*node) error { return nil }))
	require.Equal(t, 1, f.walk.seen.over)
	require.Len(t, f.walk.seen.dirs, 1)
}

// linkedFile stores app with the names a/f, m/…, z/g of one file; f happens between the first and the last.
func linkedFile(t *testing.T, f func(app string)) (string, string, stage.Findings) {
	t.Helper()
	app := filepath.Join(t.TempDir(), "app")
	write(t, app+"/a/f", []byte("before"), 0640)
	write(t, app+"/m/big", noise(1<<20), 0640)
	many(t, app+"/n")
	require.NoError(t, os.MkdirAll(app+"/z", 0755))
	require.NoError(t, os.Link(app+"/a/f", app+"/z/g"))
	require.NoError(t, os.Link(app+"/a/f", app+"/z/h"))
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	files := &set.Files{}
	found, err := AddFiles(context.Background(), w, FilesOptions{Paths: []string{app}}, &atBig{f: func() { f(app) }}, recordIn(files))
	require.NoError(t, err)
	_, err = w.Finish()
	require.NoError(t, err)
	require.Empty(t, verify(t, path, files))
	require.Empty(t, verifyIn(t, path, files, false), "no hard link leads to what does not count any more")
	gnu := t.TempDir()
	run(t, "tar", "-xzpf", path, "-C", gnu)
	dir, _ := extract(t, path)
	for name, s := range shapes(t, dir+"/files"+app) {
		g := shapeOf(t, filepath.Join(gnu, "files", app, name))
		require.Equal(t, s.Content+s.Mode+s.Target, g.Content+g.Mode+g.Target, "GNU tar: %s", name)
	}
	return app, dir + "/files" + app, found
}

func TestHardLinksOfAFileThatChanges(t *testing.T) {
	for what, f := range map[string]func(app string){
		"written":   func(app string) { require.NoError(t, os.WriteFile(app+"/a/f", []byte("after, longer"), 0640)) },
		"same size": func(app string) { require.NoError(t, os.WriteFile(app+"/z/g", []byte("afterw"), 0640)) },
		"old time": func(app string) {
			var st unix.Stat_t
			require.NoError(t, unix.Stat(app+"/a/f", &st))
			require.NoError(t, os.WriteFile(app+"/a/f", []byte("afterw"), 0640))
			setTime(t, app+"/a/f", st.Mtim.Sec, st.Mtim.Nsec)
		},
		"other rights": func(app string) { require.NoError(t, os.Chmod(app+"/z/h", 0604)) },
		"another name": func(app string) { require.NoError(t, os.Link(app+"/z/g", app+"/z/i")) },
		"a name less":  func(app string) { require.NoError(t, os.Remove(app+"/z/h")) },
		"written, the first name gone": func(app string) {
			require.NoError(t, os.WriteFile(app+"/z/g", []byte("after"), 0640))
			require.NoError(t, os.Remove(app+"/a/f"))
		},
		"written, the first name another file": func(app string) {
			require.NoError(t, os.WriteFile(app+"/z/g", []byte("after"), 0640))
			require.NoError(t, os.WriteFile(app+"/a/.f", []byte("other"), 0640))
			rename(t, app+"/a/.f", app+"/a/f")
		},
		"the first name another file": func(app string) {
			require.NoError(t, os.WriteFile(app+"/a/.f", []byte("other"), 0640))
			rename(t, app+"/a/.f", app+"/a/f")
		},
		"made anew": func(app string) { // most file systems give the new file the old number
			for _, n := range []string{"/a/f", "/z/g", "/z/h"} {
				require.NoError(t, os.Remove(app+n))
			}
			write(t, app+"/z/g", []byte("anewer"), 0640)
			require.NoError(t, os.Link(app+"/z/g", app+"/z/h"))
		},
	} {
		t.Run(what, func(t *testing.T) {
			app, restored, found := linkedFile(t, f)
			require.Empty(t, found.Warnings)
			was, is := shapes(t, app), shapes(t, restored)
			for _, name := range []string{"a/f", "z/g", "z/h", "z/i"} {
				if _, ok := was[name]; ok {
					require.Equal(t, was[name].Content, is[name].Content, name)
					require.Equal(t, was[name].Mode, is[name].Mode, name)
					require.Equal(t, was[name].First, is[name].First, name)
				}
			}
		})
	}
}

// The first name goes after the others became links to it: they are read on their own
// then, also where another file has the first name by now.
func TestFirstNameGoesLater(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		app := filepath.Join(t.TempDir(), "app")
		write(t, app+"/a/f", []byte("before"), 0640)
		write(t, app+"/m/big", noise(1<<20), 0640)
		many(t, app+"/n")
		require.NoError(t, os.Mkdir(app+"/z", 0755))
		require.NoError(t, os.Link(app+"/a/f", app+"/z/g"))
		require.NoError(t, os.Link(app+"/a/f", app+"/z/h"))
		path, files := filepath.Join(t.TempDir(), "a.tar.gz"), &set.Files{}
		w, err := Create(path, Options{})
		require.NoError(t, err)
		rec := recordIn(files)
		_, err = AddFiles(context.Background(), w, FilesOptions{Paths: []string{app}, Replace: rec}, &atBig{f: func() {
			require.NoError(t, os.WriteFile(app+"/z/g", []byte("after"), 0640))
		}}, func(f set.File) error {
			if f.Path == app+"/z/h" {
				require.Equal(t, kindHardLink, f.Kind)
				require.NoError(t, os.Remove(app+"/a/f"))
				if replaced {
					write(t, app+"/a/f", []byte("other"), 0640)
				}
			}
			return rec(f)
		})
		require.NoError(t, err)
		_, err = w.Finish()
		require.NoError(t, err)
		require.Empty(t, verify(t, path, files))
		dir, _ := extract(t, path)
		was, is := shapes(t, app), shapes(t, dir+"/files"+app)
		for _, name := range []string{"a/f", "z/g", "z/h"} {
			if _, ok := was[name]; ok {
				require.Equal(t, was[name], is[name], name)
			}
		}
	}
}

// The walk runs ahead: what it saw of a further name may be older than what was written.
func TestFirstNameGoesWhileTheWalkIsAhead(t *testing.T) {
	app := filepath.Join(t.TempDir(), "app")
	write(t, app+"/a/f", []byte("before"), 0640)
	write(t, app+"/m/big", noise(1<<20), 0640)
	require.NoError(t, os.Mkdir(app+"/z", 0755))
	require.NoError(t, os.Link(app+"/a/f", app+"/z/g"))
	path, files := filepath.Join(t.TempDir(), "a.tar.gz"), &set.Files{}
	w, err := Create(path, Options{})
	require.NoError(t, err)
	_, err = AddFiles(context.Background(), w, FilesOptions{Paths: []string{app}}, &atBig{f: func() {
		require.NoError(t, os.WriteFile(app+"/z/g", []byte("after"), 0640))
		require.NoError(t, os.Remove(app+"/a/f"))
	}}, recordIn(files))
	require.NoError(t, err)
	_, err = w.Finish()
	require.NoError(t, err)
	dir, _ := extract(t, path)
	require.Equal(t, "after", string(must(os.ReadFile(dir+"/files"+app+"/z/g"))))
}

// A further name is never made a link to an entry that holds another file by now.
func TestNewNameAfterTheFirstWasReplaced(t *testing.T) {
	_, restored, _ := linkedFile(t, func(app string) {
		require.NoError(t, os.WriteFile(app+"/a/.f", []byte("other"), 0640))
		rename(t, app+"/a/.f", app+"/a/f")
		require.NoError(t, os.Link(app+"/z/g", app+"/a/k"))
	})
	for name, want := range map[string]string{"a/f": "other", "a/k": "before", "z/g": "before", "z/h": "before"} {
		require.Equal(t, want, string(must(os.ReadFile(restored+"/"+name))), name)
	}
}
