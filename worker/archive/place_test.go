package archive

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// apps makes what the tests of places configure, and gives its directory.
func apps(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	write(t, dir+"/app/releases/5/conf/site.conf", []byte("5"), 0640)
	write(t, dir+"/app/releases/5/conf/tmp/x", []byte("x"), 0640)
	write(t, dir+"/app/releases/5/bin/run", []byte("run"), 0755)
	write(t, dir+"/app/releases/4/conf/site.conf", []byte("4"), 0640)
	write(t, dir+"/srv/data/f", []byte("data"), 0600)
	for link, to := range map[string]string{
		"app/current": "releases/5", "app/previous": "releases/4", "absolute": dir + "/app/releases/5", "chain": "app/current", "up": "app/..",
		"app/self": ".", "app/data": "../srv/data", "one": "srv/data", "two": dir + "/srv/data", "file": "srv/data/f", "srv/back": "../app",
	} {
		require.NoError(t, os.Symlink(to, filepath.Join(dir, link)))
	}
	return dir
}

// sameAs requires that what was restored has what the configured paths lead to.
func sameAs(t *testing.T, restored, dir string, paths []string) {
	t.Helper()
	for _, p := range paths {
		inside := inRoot(t, restored, p)
		real, err := filepath.EvalSymlinks(p)
		require.NoError(t, err)
		require.Equal(t, shapes(t, real), shapes(t, inside), p)
		rel := strings.TrimPrefix(real, dir)
		for up := real; up != dir && rel != ""; up = filepath.Dir(up) {
			require.Equal(t, shapeOf(t, up), shapeOf(t, restored+up), up)
		}
	}
}

// inRoot follows a path as a process does whose / is root.
func inRoot(t *testing.T, root, path string) string {
	t.Helper()
	fd, err := unix.Openat2(mustOpen(t, root), strings.TrimPrefix(path, "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	require.NoError(t, err, "%s does not lead anywhere", path)
	defer unix.Close(fd)
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	require.NoError(t, err)
	return real
}

func TestPathsThroughLinks(t *testing.T) {
	for what, names := range map[string][]string{
		"the issue's":                 {"app", "app/current/conf"},
		"only through the link":       {"app/current/conf"},
		"two links to one place":      {"one", "two"},
		"and the place":               {"two", "srv/data", "one"},
		"an absolute link":            {"absolute/conf"},
		"a chain":                     {"chain/conf", "app"},
		"a chain alone":               {"chain/bin"},
		"to a parent":                 {"app/self/releases", "app/self/self/current"},
		"a parent of all":             {"up/srv", "up"},
		"a link itself":               {"app/current"},
		"a link to another path":      {"app/data", "app"},
		"a target outside all paths":  {"app/releases", "app/data"},
		"a file through links":        {"file", "app/data/f"},
		"trailing slashes, twice":     {"app/current/", "app//current/./", "app/current"},
		"dots after a link":           {"app/current/../4", "one/../data"},
		"outer after inner":           {"app/current/conf/tmp", "app/current/conf", "app/current", "app"},
		"a link within another place": {"app/releases/5", "srv/back/releases/5/conf"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := apps(t)
			var paths []string
			for _, n := range names {
				paths = append(paths, dir+"/"+n)
			}
			path, files, found := backup(t, FilesOptions{Paths: paths})
			require.Empty(t, found.Warnings)
			require.Empty(t, verify(t, path, files))
			seen := map[string]bool{}
			each(t, path, func(h *Header, _ io.Reader) {
				require.False(t, seen[h.Name], "%s twice", h.Name)
				seen[h.Name] = true
			})
			restored, _ := extract(t, path)
			sameAs(t, restored+"/files", dir, paths)
			gnu := t.TempDir()
			run(t, "tar", "-xzpf", path, "-C", gnu, "--numeric-owner", "--xattrs", "--xattrs-include=*")
			sameAs(t, gnu+"/files", dir, paths)
			_, count, err := EstimateFiles(context.Background(), FilesOptions{Paths: paths})
			require.NoError(t, err)
			require.Equal(t, int64(len(files.Entries)), count)
		})
	}
}

func TestPlacesSayWhatWasConfigured(t *testing.T) {
	dir := apps(t)
	require.NoError(t, os.Mkdir(dir+"/caf\xe9", 0755))
	require.NoError(t, os.Symlink("caf\xe9", dir+"/coffee"))
	places, err := ResolvePlaces([]string{dir + "/chain/../4/conf/", dir + "/coffee", dir + "/srv"})
	require.NoError(t, err)
	require.Equal(t, []set.Place{
		{Configured: dir + "/chain/../4/conf/", Resolved: dir + "/app/releases/4/conf",
			Way: []set.PlaceStep{{Path: dir + "/chain", Target: "app/current"}, {Path: dir + "/app/current", Target: "releases/5"}, {Path: dir + "/app/releases/5"}}},
		{Configured: dir + "/coffee", Resolved: dir + "/caf\uFFFD", ResolvedBytes: places[1].ResolvedBytes,
			Way: []set.PlaceStep{{Path: dir + "/coffee", Target: "caf\uFFFD", TargetBytes: places[1].Way[0].TargetBytes}}},
		{Configured: dir + "/srv", Resolved: dir + "/srv"},
	}, places)
	p, err := placeOf(places[1])
	require.NoError(t, err)
	require.Equal(t, dir+"/caf\xe9", p.real)

	require.NoError(t, os.Symlink("nowhere", dir+"/dangling"))
	require.NoError(t, os.Symlink("loop", dir+"/loop"))
	for p, why := range map[string]string{dir + "/dangling": "does not exist", dir + "/dangling/x": "does not exist", dir + "/file/x": "does not exist",
		dir + "/loop": "cannot be looked at", "app": "not an absolute path", dir + "/none": "does not exist"} {
		_, err := ResolvePlaces([]string{p})
		require.True(t, stage.IsPermanent(err), "%s: %v", p, err)
		require.ErrorContains(t, err, why)
	}
}

// A pattern may use the configured name or the real one.
func TestExcludesMatchEitherName(t *testing.T) {
	dir := apps(t)
	for _, pattern := range []string{dir + "/app/current/conf/tmp", dir + "/app/releases/5/conf/tmp", "tmp", dir + "/app/current/conf/tmp/**", "tmp/x", dir + "/app/current/**/x"} {
		for _, paths := range [][]string{{dir + "/app/current/conf"}, {dir + "/app", dir + "/app/current/conf"}} {
			_, files, _ := backup(t, FilesOptions{Paths: paths, Exclude: []string{pattern}})
			require.NotContains(t, names(files), dir+"/app/releases/5/conf/tmp/x", "%s of %v", pattern, paths)
			require.Contains(t, names(files), dir+"/app/releases/5/conf/site.conf")
			require.Contains(t, names(files), dir+"/app/current")
		}
	}
	// Into an excluded place: what is configured is never excluded, nor is the way there.
	path, files, _ := backup(t, FilesOptions{Paths: []string{dir + "/app", dir + "/app/current/conf"}, Exclude: []string{"releases/", "current", "!" + dir + "/app/releases/4"}})
	require.Empty(t, verify(t, path, files))
	require.Contains(t, names(files), dir+"/app/releases/5/conf/tmp/x")
	require.NotContains(t, names(files), dir+"/app/releases/5/bin")
	require.NotContains(t, names(files), dir+"/app/releases/4")
	restored, _ := extract(t, path)
	require.Equal(t, "5", string(must(os.ReadFile(inRoot(t, restored+"/files", dir+"/app/current/conf/site.conf")))))
	require.Equal(t, shapeOf(t, dir+"/app/releases"), shapeOf(t, restored+"/files"+dir+"/app/releases"))
}

// What the run found at its beginning holds, whatever becomes of the links.
func TestLinksThatChangeDuringTheRun(t *testing.T) {
	dir := apps(t)
	paths := []string{dir + "/app/current/conf"}
	places, err := ResolvePlaces(paths)
	require.NoError(t, err)
	switchTo := func(to string) {
		require.NoError(t, os.Symlink(to, dir+"/app/new"))
		require.NoError(t, os.Rename(dir+"/app/new", dir+"/app/current"))
	}
	switchTo("releases/4")
	for _, all := range [][]string{{}, {dir + "/app"}} { // the link met by a walk, and by itself
		outer, err := ResolvePlaces(all)
		require.NoError(t, err)
		path, files, found := backup(t, FilesOptions{Places: append(outer, places...)})
		require.Len(t, found.Warnings, 1)
		require.Contains(t, found.Warnings[0], "lead elsewhere by now")
		require.Empty(t, verify(t, path, files))
		restored, _ := extract(t, path)
		require.Equal(t, "5", string(must(os.ReadFile(inRoot(t, restored+"/files", dir+"/app/current/conf/site.conf")))))
	}
	require.NoError(t, os.Remove(dir+"/app/current"))
	require.NoError(t, os.Mkdir(dir+"/app/current", 0755))
	for _, all := range [][]string{{}, {dir + "/app"}} {
		outer, err := ResolvePlaces(all)
		require.NoError(t, err)
		path, files, found := backup(t, FilesOptions{Places: append(outer, places...)})
		require.Len(t, found.Warnings, 1)
		require.Contains(t, found.Warnings[0], "is none any more")
		require.Empty(t, verify(t, path, files))
		extract(t, path)
	}
	// The place itself became a link, or lies behind one: never followed.
	require.NoError(t, os.Rename(dir+"/app/releases/5", dir+"/app/releases/6"))
	require.NoError(t, os.Symlink("6", dir+"/app/releases/5"))
	_, err = AddFiles(context.Background(), mustCreate(t), FilesOptions{Places: places}, nil, nil)
	require.ErrorContains(t, err, "start the backup again")
	_, err = AddFiles(context.Background(), mustCreate(t), FilesOptions{Places: []set.Place{{Configured: "x", Resolved: dir + "/app/releases/5"}}}, nil, nil)
	require.ErrorContains(t, err, "start the backup again")
}

// The backup's own directories stay out, whatever name leads there.
func TestNeverThroughLinks(t *testing.T) {
	dir := apps(t)
	_, err := plant(FilesOptions{Paths: []string{dir + "/one"}, Never: []string{dir + "/srv"}})
	require.True(t, stage.IsPermanent(err))
	require.ErrorContains(t, err, "a directory of the backup itself")
	path, files, _ := backup(t, FilesOptions{Paths: []string{dir + "/up", dir + "/app/data/../../app"}, Never: []string{dir + "/one"}})
	require.Contains(t, names(files), dir+"/srv/data")
	require.NotContains(t, names(files), dir+"/srv/data/f")
	require.Empty(t, verify(t, path, files))
	extract(t, path)
}

// The directories above the configured paths come back as they were, and a copy over
// a host's own changes none of them.
func TestParentsComeBack(t *testing.T) {
	dir := apps(t)
	require.NoError(t, os.Chmod(dir+"/app", 0711))
	require.NoError(t, os.Lchown(dir+"/app", 1234, 5678))
	require.NoError(t, os.Chmod(dir+"/app/releases", 0751|os.ModeSticky))
	require.NoError(t, unix.Setxattr(dir+"/app", "user.note", []byte("parent"), 0))
	require.NoError(t, unix.Setxattr(dir+"/app", "system.posix_acl_default", acl, 0))
	setTime(t, dir+"/app/releases", 1300000000, 7)
	setTime(t, dir+"/app", 1300000000, 8)
	path, files, found := backup(t, FilesOptions{Paths: []string{dir + "/app/current/conf", dir + "/app/releases/4/conf", dir + "/app/releases/5/bin"}})
	require.Empty(t, found.Warnings)
	for _, up := range append(parents(dir+"/app/releases/4/conf"), dir+"/app/releases/5") {
		i := slices.IndexFunc(files.Entries, func(f set.File) bool { return f.Path == up })
		require.GreaterOrEqual(t, i, 0, up)
		require.True(t, files.Entries[i].Parent)
		require.Equal(t, "dir", files.Entries[i].Kind)
	}
	list := &List{}
	for i := range files.Entries {
		require.NoError(t, list.Add(&files.Entries[i]))
	}
	require.True(t, list.file(0).Parent)
	require.Empty(t, verify(t, path, files))

	x := t.TempDir()
	e, err := NewExtractor(x, ExtractOptions{Strip: "files", Unnamed: func(p string) *Header { t.Fatalf("%q is not described", p); return nil }})
	require.NoError(t, err)
	each(t, path, func(h *Header, r io.Reader) { require.NoError(t, e.Entry(h, r)) })
	_, err = e.Finish()
	require.NoError(t, err)
	gnu := t.TempDir()
	run(t, "tar", "-xzpf", path, "-C", gnu, "--numeric-owner", "--delay-directory-restore", "--xattrs", "--xattrs-include=*")
	host := t.TempDir()
	run(t, "cp", "-a", x+"/.", host)
	for _, root := range []string{x, gnu + "/files", host} {
		for _, up := range append(parents(dir+"/app/releases/4/conf"), dir+"/app/releases/5") {
			want, got := shapeOf(t, up), shapeOf(t, root+up)
			if !strings.HasPrefix(up, dir+"/app") { // tests run beside, in these
				want.Time, got.Time = "", ""
			}
			require.Equal(t, want, got, root+up)
		}
	}
}

// Sets of earlier versions say nothing of the directories above, and have files below
// links of their own.
func TestOldSetsComeBack(t *testing.T) {
	w := mustCreate(t)
	dir := func(name string, mode int64) *Header { return &Header{Name: "files/" + name, Kind: Dir, Mode: mode} }
	file := func(name string) *Header { return &Header{Name: "files/" + name, Kind: Regular, Mode: 0640, Size: 1} }
	for _, h := range []*Header{dir("opt/app", 0755), {Name: "files/opt/app/abs", Kind: Symlink, Link: "/srv/data"}, {Name: "files/opt/app/current", Kind: Symlink, Link: "releases/5"},
		{Name: "files/opt/app/far", Kind: Symlink, Link: "../../../../../etc"}, {Name: "files/opt/app/a", Kind: Symlink, Link: "b"}, {Name: "files/opt/app/b", Kind: Symlink, Link: "/opt/app/current"},
		dir("opt/app/releases", 0755), dir("opt/app/releases/5", 0751), dir("opt/app/releases/5/conf", 0711), file("opt/app/releases/5/conf/x"),
		dir("opt/app/current/conf", 0711), file("opt/app/current/conf/x"), dir("opt/app/abs/in", 0700), file("opt/app/abs/in/y"), file("opt/app/far/passwd"), file("opt/app/a/z"),
		{Name: "files/opt/app/abs/in/hard", Kind: HardLink, Link: "files/opt/app/abs/in/y"}} {
		w.check = NewChecker() // a new one knows no links, as earlier versions did not
		require.NoError(t, w.Entry(context.Background(), h, strings.NewReader("1"), Auto))
	}
	_, err := w.Finish()
	require.NoError(t, err)

	v := NewVerifier(&List{}, func(d set.Damage) {
		if d.Problem != "it is in the archive and not in the manifest" {
			require.True(t, d.Restorable, "%v", d)
			require.Contains(t, d.Problem, "lie below this symbolic link")
		}
	})
	check, refused := NewChecker(), 0
	each(t, w.Path(), func(h *Header, r io.Reader) {
		if err := check.Check(h); err != nil {
			refused++
			require.True(t, v.Through(h, err), "%v", err)
		}
		require.NoError(t, v.Entry(h, r))
	})
	require.Equal(t, 7, refused)
	require.Len(t, v.thru, 4)
	require.NoError(t, v.Finish(true))

	top := t.TempDir()
	root := top + "/DIR"
	require.NoError(t, os.Mkdir(root, 0700))
	x, err := NewExtractor(root, ExtractOptions{Strip: "files", ThroughLinks: true, Unnamed: func(p string) *Header { return &Header{Mode: 0755, UID: 12} }})
	require.NoError(t, err)
	each(t, w.Path(), func(h *Header, r io.Reader) { require.NoError(t, x.Entry(h, r)) })
	found, err := x.Finish()
	require.NoError(t, err)
	require.Len(t, found.Warnings, 1)
	require.Contains(t, found.Warnings[0], "opt/app/abs/in/y in srv/data/in/y")
	for _, name := range []string{"/opt/app/releases/5/conf/x", "/opt/app/releases/5/z", "/srv/data/in/y", "/srv/data/in/hard", "/etc/passwd", "/opt/app/abs", "/opt/app/current"} {
		_, err := os.Lstat(root + name)
		require.NoError(t, err, name)
	}
	require.Equal(t, "755", shapeOf(t, root).Mode)
	require.Equal(t, uint32(12), shapeOf(t, root+"/srv/data").UID)
	require.Equal(t, "751", shapeOf(t, root+"/opt/app/releases/5").Mode)
	beside, err := os.ReadDir(top)
	require.NoError(t, err)
	require.Len(t, beside, 1, "nothing beside the target")
}

// No archive is made that does not unpack.
func TestWriterRefuses(t *testing.T) {
	for _, list := range [][]*Header{
		{{Name: "l", Kind: Symlink, Link: "d"}, {Name: "l/x", Kind: Regular}},
		{{Name: "l", Kind: Symlink, Link: "d"}, {Name: "l", Kind: Dir}},
		{{Name: "d/x", Kind: Regular}, {Name: "d", Kind: Symlink, Link: "e"}},
		{{Name: "d", Kind: Dir}, {Name: "d", Kind: Regular}},
		{{Name: "a/b/x", Kind: Regular}, {Name: "a", Kind: HardLink, Link: "f"}},
	} {
		w := mustCreate(t)
		require.NoError(t, w.Entry(context.Background(), list[0], nil, Auto))
		require.ErrorContains(t, w.Entry(context.Background(), list[1], nil, Auto), list[1].Name)
	}
}
