package archive

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// A path whose directory is another one by the end: what was moved in between may be in
// neither, so the attempt fails, and the next one is a good set of what is there then.
func TestPlaceReplacedWhileRead(t *testing.T) {
	green := func(app string) { // what was not read yet goes into the new one
		require.NoError(t, os.Mkdir(app+".new", 0755))
		rename(t, app+"/z", app+".new/z")
		rename(t, app, app+".old")
		rename(t, app+".new", app)
	}
	for what, c := range map[string]struct {
		replace func(app string)
		want    string
	}{
		"the place": {green, "was replaced while it was read"},
		"the place, of the same number": {func(app string) {
			rename(t, app+"/z", app+".z")
			require.NoError(t, os.RemoveAll(app))
			require.NoError(t, os.Mkdir(app, 0755))
			rename(t, app+".z", app+"/z")
		}, "was replaced while it was read"},
		"the directory above": {func(app string) {
			up := filepath.Dir(app)
			require.NoError(t, os.MkdirAll(up+".new/app", 0755))
			rename(t, app+"/z", up+".new/app/z")
			rename(t, up, up+".old")
			rename(t, up+".new", up)
		}, "was replaced while it was read"},
		"a file":        {func(app string) { rename(t, app, app+".old"); write(t, app, []byte("x"), 0600) }, "was replaced"},
		"a link":        {func(app string) { rename(t, app, app+".old"); require.NoError(t, os.Symlink("app.old", app)) }, "was replaced"},
		"moved away":    {func(app string) { rename(t, app, app+".old") }, "is not any more"},
		"away and back": {func(app string) { rename(t, app, app+".old"); rename(t, app+".old", app) }, ""},
	} {
		t.Run(what, func(t *testing.T) {
			app, restored, _, _, err := midwayIn(t, "up", c.replace)
			if c.want != "" {
				require.ErrorContains(t, err, c.want)
				require.False(t, stage.IsPermanent(err))
				if what == "moved away" {
					return
				}
				var files *set.Files
				var path string
				path, files, _ = backup(t, FilesOptions{Paths: []string{app}})
				require.Empty(t, verify(t, path, files))
				dir, _ := extract(t, path)
				restored = dir + "/files" + app
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, shapes(t, app), shapes(t, restored))
		})
	}
}

// A place that is a file may be replaced: that is how many programs save.
func TestPlaceThatIsAFileReplaced(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/big", noise(1<<20), 0600)
	write(t, dir+"/conf", []byte("1"), 0600)
	for _, replace := range []func(){
		func() { write(t, dir+"/.conf", []byte("2"), 0600); rename(t, dir+"/.conf", dir+"/conf") },
		func() { require.NoError(t, os.Remove(dir+"/conf")); require.NoError(t, os.Mkdir(dir+"/conf", 0700)) },
	} {
		_, err := AddFiles(context.Background(), mustCreate(t), FilesOptions{Paths: []string{dir + "/conf", dir + "/big"}}, nil, func(f set.File) error {
			if f.Path == dir+"/conf" {
				replace()
			}
			return nil
		})
		if st, e := os.Stat(dir + "/conf"); e == nil && st.IsDir() {
			require.ErrorContains(t, err, "was replaced")
		} else {
			require.NoError(t, err)
		}
	}
}

// An archive cannot hold a file and a directory of one name, so that what came with the
// later one would be missing.
func TestMovedOverTheOtherKind(t *testing.T) {
	link := func(app string) { require.NoError(t, os.Symlink("deep", app+"/a/cur")) }
	for what, c := range map[string]struct{ before, replace func(app string) }{
		"a link by a directory": {link, func(app string) { // mostly gets the link's number
			require.NoError(t, os.Remove(app+"/a/cur"))
			require.NoError(t, os.Mkdir(app+"/a/cur", 0755))
			rename(t, app+"/z/four", app+"/a/cur/four")
		}},
		"a link by another directory": {link, func(app string) {
			require.NoError(t, os.Remove(app+"/a/cur"))
			rename(t, app+"/z", app+"/a/cur")
		}},
		"a file by a directory": {nil, func(app string) { require.NoError(t, os.Remove(app+"/a/one")); rename(t, app+"/z/sub", app+"/a/one") }},
		"a directory by a file": {nil, func(app string) {
			require.NoError(t, os.RemoveAll(app+"/a/deep"))
			rename(t, app+"/z/four", app+"/a/deep")
		}},
		"a directory by a link": {nil, func(app string) {
			require.NoError(t, os.RemoveAll(app+"/a/deep/er"))
			require.NoError(t, os.Symlink("../../z", app+"/a/deep/er"))
		}},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := prepared(t, c.before, c.replace, nil)
			require.ErrorContains(t, err, "took the place of a directory")
			require.False(t, stage.IsPermanent(err))
		})
	}
}

// prepared is midway over a tree that before made more of; check gets what was restored.
func prepared(t *testing.T, before, replace func(app string), check func(app, restored string)) (stage.Findings, error) {
	t.Helper()
	app := filepath.Join(t.TempDir(), "app")
	write(t, app+"/a/one", []byte("one"), 0640)
	write(t, app+"/a/deep/er/three", []byte("three"), 0640)
	write(t, app+"/m/big", noise(1<<20), 0640)
	many(t, app+"/n")
	write(t, app+"/z/four", []byte("four"), 0640)
	write(t, app+"/z/sub/five", []byte("five"), 0640)
	if before != nil {
		before(app)
	}
	older()
	restored, _, found, err := storedMidway(t, app, replace)
	if err == nil {
		check(app, restored)
	}
	return found, err
}

// A file system gives the number of what is removed to what is made next. Of what is no
// directory the later one counts, of whatever kind it was before.
func TestSameNumberAnotherThing(t *testing.T) {
	again := func(name string, make func(path string)) func(app string) {
		return func(app string) {
			require.NoError(t, os.Remove(app+"/a/"+name))
			make(app + "/a/" + name)
		}
	}
	pipe := func(app string) { require.NoError(t, unix.Mkfifo(app+"/a/x", 0600)) }
	file := func(app string) { write(t, app+"/a/x", []byte("before"), 0600) }
	link := func(app string) { require.NoError(t, os.Symlink("before", app+"/a/x")) }
	for what, c := range map[string]struct{ before, replace func(app string) }{
		"a pipe, then a file": {pipe, again("x", func(p string) { write(t, p, []byte("after"), 0600) })},
		"a pipe, then a directory": {pipe, func(app string) {
			again("x", func(p string) { require.NoError(t, os.Mkdir(p, 0700)) })(app)
			rename(t, app+"/z/four", app+"/a/x/four")
		}},
		"a file, then a link": {file, again("x", func(p string) { require.NoError(t, os.Symlink("after", p)) })},
		"a link, then a file": {link, again("x", func(p string) { write(t, p, []byte("after"), 0600) })},
		"a file, then one from another disk": {file, func(app string) {
			again("x", func(p string) { run(t, "cp", "-a", app+"/z/four", p) })(app)
			require.NoError(t, os.Remove(app+"/z/four"))
		}},
		"a directory, then one made anew": {nil, func(app string) {
			require.NoError(t, os.RemoveAll(app+"/a/deep"))
			require.NoError(t, os.MkdirAll(app+"/a/deep/er", 0700))
			rename(t, app+"/z/four", app+"/a/deep/er/three")
		}},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := prepared(t, c.before, c.replace, func(app, restored string) {
				was, is := shapes(t, app), shapes(t, restored)
				for name, s := range was {
					require.Equal(t, s.Content+s.Target+s.Mode, is[name].Content+is[name].Target+is[name].Mode, name)
				}
			})
			require.NoError(t, err)
		})
	}
}

// What is mounted over a directory, or was, changes nothing in the one above.
func TestMountedWhileRead(t *testing.T) {
	other := tmpfs(t, "1m")
	write(t, other+"/x", []byte("mounted"), 0600)
	mount := func(app string) {
		require.NoError(t, unix.Mount(other, app+"/a/deep/er", "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(app+"/a/deep/er", unix.MNT_DETACH) })
	}
	_, err := prepared(t, nil, mount, func(app, restored string) {
		require.Equal(t, "mounted", string(must(os.ReadFile(restored+"/a/deep/er/x"))))
		require.NoError(t, unix.Unmount(app+"/a/deep/er", 0))
	})
	require.NoError(t, err)
	_, err = prepared(t, mount, func(app string) { require.NoError(t, unix.Unmount(app+"/a/deep/er", unix.MNT_DETACH)) }, func(app, restored string) {
		require.Equal(t, "three", string(must(os.ReadFile(restored+"/a/deep/er/three"))))
	})
	require.NoError(t, err)
}

// Two directories that are swapped come back as a union, and the warning says which one
// has what is left over from before. That of a directory made anew is a note.
func TestDirectoriesSwapped(t *testing.T) {
	before := func(app string) {
		write(t, app+"/a/live/a", []byte("old"), 0600)
		write(t, app+"/a/live/b.conf", []byte("old"), 0600)
		write(t, app+"/a/standby/a", []byte("new"), 0600)
	}
	found, err := prepared(t, before, func(app string) {
		require.NoError(t, unix.Renameat2(unix.AT_FDCWD, app+"/a/live", unix.AT_FDCWD, app+"/a/standby", unix.RENAME_EXCHANGE))
	}, func(app, restored string) {
		require.Equal(t, "new", string(must(os.ReadFile(restored+"/a/live/a"))))
		require.Equal(t, "old", string(must(os.ReadFile(restored+"/a/live/b.conf"))))
	})
	require.NoError(t, err)
	require.Len(t, found.Warnings, 2)
	require.Contains(t, found.Warnings[0], "what only the former ones held is in the set too")
	require.Contains(t, found.Warnings[0], "app/a/live")
	require.NotContains(t, found.Warnings[0], "standby", "nothing is left over there")

	found, err = prepared(t, before, func(app string) {
		require.NoError(t, os.RemoveAll(app+"/a/live"))
		write(t, app+"/a/live/a", []byte("new"), 0600)
	}, func(string, string) {})
	require.NoError(t, err)
	require.Empty(t, found.Warnings)
	require.Contains(t, strings.Join(found.Notes, "\n"), "what only the former ones held is in the set too")
}

// A file is torn while it is read, and its first name is another file or gone before it
// can be read again: under its other names it comes back whole, as it is.
func TestTornFirstNameGoes(t *testing.T) {
	for what, first := range map[string]func(x string){
		"another file": func(x string) { write(t, x+".new", []byte("other"), 0600); rename(t, x+".new", x) },
		"removed":      func(x string) { require.NoError(t, os.Remove(x)) },
		"a link":       func(x string) { require.NoError(t, os.Remove(x)); require.NoError(t, os.Symlink("other", x)) },
	} {
		t.Run(what, func(t *testing.T) {
			app := filepath.Join(t.TempDir(), "app")
			x, y, z := app+"/m/big", app+"/z/y", app+"/z/z"
			write(t, x, noise(2<<20), 0600)
			require.NoError(t, os.Mkdir(app+"/z", 0700))
			require.NoError(t, os.Link(x, y))
			require.NoError(t, os.Link(x, z))
			path, files := filepath.Join(t.TempDir(), "a.tar.gz"), &set.Files{}
			w, err := Create(path, Options{})
			require.NoError(t, err)
			rec := recordIn(files)
			_, err = AddFiles(context.Background(), w, FilesOptions{Paths: []string{app}, Replace: rec}, &atBig{f: func() {
				f, err := os.OpenFile(x, os.O_WRONLY, 0)
				require.NoError(t, err)
				for _, at := range []int64{0, 2<<20 - 4} {
					_, err = f.WriteAt([]byte("GEN2"), at)
					require.NoError(t, err)
				}
				require.NoError(t, f.Close())
			}}, func(f set.File) error {
				if f.Path == z && first != nil {
					first(x)
					first = nil
				}
				return rec(f)
			})
			require.NoError(t, err)
			_, err = w.Finish()
			require.NoError(t, err)
			require.Empty(t, verifyIn(t, path, files, false))
			dir, _ := extract(t, path)
			was, is := shapes(t, app), shapes(t, dir+"/files"+app)
			for _, name := range []string{"z/y", "z/z"} {
				require.Equal(t, was[name].Content, is[name].Content, name)
				require.Equal(t, was[name].First, is[name].First, name)
			}
		})
	}
}

// Sets of earlier versions have hard links to entries that a later one took the place of, and of
// which the manifest knows nothing: they are whole if the archive is, else nobody knows.
func TestHardLinkToWhatDoesNotCount(t *testing.T) {
	w, list, sums := mustCreate(t), &List{}, map[string]string{}
	entry := func(name, content string, kind Kind) {
		h := &Header{Name: "files/" + name, Kind: kind, Mode: 0600, Size: int64(len(content))}
		if kind == HardLink {
			h.Link = "files/x"
		}
		require.NoError(t, w.Entry(context.Background(), h, strings.NewReader(content), Auto))
		sum := newFileHash(h)
		_, err := sum.Write([]byte(content))
		require.NoError(t, err)
		sums[name] = sum.hex()
	}
	entry("x", "what y holds", Regular)
	entry("y", "", HardLink)
	entry("x", "another file", Regular)
	entry("z", "", HardLink)
	_, err := w.Finish()
	require.NoError(t, err)
	epoch := (&Header{}).ModTime
	for _, f := range []set.File{{Path: "/x", Kind: kindFile, Size: 12, SHA256: sums["x"]}, {Path: "/y", Kind: kindHardLink, Target: "/x"}, {Path: "/z", Kind: kindHardLink, Target: "/x"}} {
		f.Mode, f.ModTime = "0600", epoch
		require.NoError(t, list.Add(&f))
	}
	for _, intact := range []bool{true, false} {
		var found []set.Damage
		v := NewVerifier(list, func(d set.Damage) { found = append(found, d) })
		each(t, w.Path(), func(h *Header, r io.Reader) { h.ModTime = epoch; require.NoError(t, v.Entry(h, r)) })
		require.NoError(t, v.Finish(intact))
		if intact {
			require.Empty(t, found)
			continue
		}
		require.Len(t, found, 1)
		require.Equal(t, "files/y", found[0].Entry)
		require.False(t, found[0].Restorable)
	}
}
