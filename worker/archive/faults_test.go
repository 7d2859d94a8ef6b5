package archive

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// fail gives an error to the first operations of a kind on a name only.
func fail(op, name string, errno unix.Errno, times int32) func(string, string, uint64) unix.Errno {
	var left atomic.Int32
	left.Store(times)
	return func(o, n string, _ uint64) unix.Errno {
		if o == op && n == name && left.Add(-1) >= 0 {
			return errno
		}
		return 0
	}
}

const always = 1 << 30

// A bad disk and a file server that lost its handles are not files that vanished.
func TestFaultsAreNotAbsence(t *testing.T) {
	names := []string{"a", "b.dir", "c", "d.dir"}
	for what, c := range map[string]struct {
		fault     func(op, name string, at uint64) unix.Errno
		permanent bool   // the run fails for good
		passing   bool   // an attempt fails, the next one may not
		warn      string // with AllowUnreadable
		lost      string // the path that then lacks content
	}{
		"read, EIO":               {fault: fail("read", "a", unix.EIO, always), permanent: true, warn: "cannot be read", lost: "a"},
		"open, EIO":               {fault: fail("open", "a", unix.EIO, always), permanent: true, warn: "cannot be read", lost: "a"},
		"look, EIO":               {fault: fail("lookup", "a", unix.EIO, always), permanent: true, warn: "cannot be read", lost: "a"},
		"directory, EIO":          {fault: fail("opendir", "b.dir", unix.EIO, always), permanent: true, warn: "cannot be read", lost: "b.dir/in"},
		"listing, EIO":            {fault: fail("readdir", "b.dir", unix.EIO, always), permanent: true, warn: "cannot be read", lost: "b.dir/in"},
		"read, stale":             {fault: fail("read", "a", unix.ESTALE, always), passing: true, warn: "cannot be read", lost: "a"},
		"open, stale":             {fault: fail("open", "a", unix.ESTALE, always), passing: true, warn: "cannot be read", lost: "a"},
		"look, stale":             {fault: fail("lookup", "c", unix.ESTALE, always), passing: true, warn: "cannot be read", lost: "c"},
		"listing, stale":          {fault: fail("readdir", "d.dir", unix.ESTALE, always), passing: true, warn: "cannot be read", lost: "d.dir/in"},
		"open, stale once":        {fault: fail("open", "a", unix.ESTALE, 2)},
		"read, stale once":        {fault: fail("read", "c", unix.ESTALE, 1)},
		"attributes, EIO":         {fault: fail("listxattr", "a", unix.EIO, always), warn: "extended attributes that could not be read"},
		"attribute, EPERM":        {fault: fail("getxattr", "a", unix.EPERM, always), warn: "extended attributes that could not be read"},
		"attribute, too large":    {fault: fail("getxattr", "b.dir", unix.E2BIG, always), warn: "extended attributes that could not be read"},
		"attribute, removed":      {fault: fail("getxattr", "a", unix.ENODATA, always)},
		"attributes, unsupported": {fault: fail("listxattr", "a", unix.EOPNOTSUPP, always)},
	} {
		t.Run(what, func(t *testing.T) {
			dir := mountFaulty(t, names, c.fault)
			for _, allow := range []bool{false, true} {
				files := &set.Files{}
				found, err := AddFiles(context.Background(), mustCreate(t), FilesOptions{Paths: []string{dir}, AllowUnreadable: allow}, nil, recordIn(files))
				if !allow && (c.permanent || c.passing) {
					require.Error(t, err)
					require.Equal(t, c.permanent, stage.IsPermanent(err), "%v", err)
					require.ErrorContains(t, err, dir)
					continue
				}
				require.NoError(t, err)
				require.NotContains(t, strings.Join(append(found.Notes, found.Warnings...), " "), "vanished")
				if c.warn == "" {
					require.Empty(t, found.Warnings)
				} else {
					require.Len(t, found.Warnings, 1)
					require.Contains(t, found.Warnings[0], c.warn)
				}
				content := map[string]string{}
				for _, f := range below(files) {
					content[strings.TrimPrefix(f.Path, dir+"/")] = f.SHA256 + f.Changed
				}
				for _, name := range []string{"a", "b.dir/in", "c", "d.dir/in"} {
					if name == c.lost {
						require.NotContains(t, content[name], vanished)
						continue
					}
					require.Len(t, content[name], 64, name)
				}
			}
		})
	}
}

// A listing that breaks off in the middle is no shorter directory; what it gave is kept.
func TestListingThatBreaksOff(t *testing.T) {
	dir := mountFaulty(t, []string{"a", "b", "c"}, func(op, name string, at uint64) unix.Errno {
		if op == "readdir" && name == "" && at == 2 {
			return unix.EIO
		}
		return 0
	})
	_, err := AddFiles(context.Background(), mustCreate(t), FilesOptions{Paths: []string{dir}}, nil, nil)
	require.True(t, stage.IsPermanent(err), "%v", err)
	path, files, found := backup(t, FilesOptions{Paths: []string{dir}, AllowUnreadable: true})
	require.NotEmpty(t, found.Warnings)
	require.Equal(t, []string{dir, dir + "/a", dir + "/b"}, names(files))
	require.Equal(t, unreadable, below(files)[0].Changed)
	require.Empty(t, verify(t, path, files))
}

// What is away when it is opened and is back later is in the set.
func TestAwayAndBack(t *testing.T) {
	for _, c := range [][2]string{{"open", "a"}, {"opendir", "b.dir"}, {"lookup", "c"}, {"readdir", "d.dir"}} {
		dir := mountFaulty(t, []string{"a", "b.dir", "c", "d.dir"}, fail(c[0], c[1], unix.ENOENT, 1))
		path, files, found := backup(t, FilesOptions{Paths: []string{dir}, Now: func() time.Time { return time.Unix(1e9, 0) }})
		require.LessOrEqual(t, len(found.Warnings), 1, "%v", found) // it looks as if it were moved here
		require.Empty(t, verify(t, path, files))
		require.ElementsMatch(t, []string{dir, dir + "/a", dir + "/b.dir", dir + "/b.dir/in", dir + "/c", dir + "/d.dir", dir + "/d.dir/in"}, names(files), "%v", c)
		for _, f := range below(files) {
			require.Empty(t, f.Changed)
			require.Equal(t, f.Kind == kindFile, f.SHA256 != "")
		}
	}
}

// Without /proc all is stored as with it.
func TestWithoutProc(t *testing.T) {
	if root := os.Getenv(childRoot); root != "" {
		require.NoError(t, unix.Unmount("/proc", unix.MNT_DETACH))
		require.NoFileExists(t, "/proc/self/stat")
		path, files, found := backup(t, FilesOptions{Paths: []string{root + "/app"}})
		require.Empty(t, found.Warnings)
		require.Empty(t, verify(t, path, files))
		got := map[string]string{}
		each(t, path, func(h *Header, _ io.Reader) {
			for name, v := range h.Xattrs {
				got[strings.TrimPrefix(h.Name, "files"+root+"/app")+" "+name] = v
			}
		})
		require.Equal(t, map[string]string{" user.dir": "1", "/small user.note": "2", "/large user.note": "3", "/link trusted.link": "4", "/small system.posix_acl_access": string(acl)}, got)
		return
	}
	root := t.TempDir()
	write(t, root+"/app/small", []byte("x"), 0640)
	write(t, root+"/app/large", noise(200000), 0640)
	require.NoError(t, os.Symlink("small", root+"/app/link"))
	require.NoError(t, unix.Setxattr(root+"/app", "user.dir", []byte("1"), 0))
	require.NoError(t, unix.Setxattr(root+"/app/small", "user.note", []byte("2"), 0))
	require.NoError(t, unix.Setxattr(root+"/app/small", "system.posix_acl_access", acl, 0))
	require.NoError(t, unix.Setxattr(root+"/app/large", "user.note", []byte("3"), 0))
	require.NoError(t, unix.Lsetxattr(root+"/app/link", "trusted.link", []byte("4"), 0))
	cmd := exec.Command(os.Args[0], "-test.run", "^TestWithoutProc$", "-test.v")
	cmd.Env = append(os.Environ(), childRoot+"="+root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// An attribute that the worker may not read is a warning, no failure and no silence.
func TestAttributesWithoutRights(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/up/app/f", []byte("x"), 0644)
	require.NoError(t, unix.Setxattr(root+"/up", "user.note", []byte("1"), 0))
	require.NoError(t, os.Chmod(root+"/up", 0711))
	asUser(t, "TestAttributesWithoutRightsAsUser", root)
}

func TestAttributesWithoutRightsAsUser(t *testing.T) {
	root := os.Getenv(childRoot)
	if root == "" {
		return
	}
	_, files, found := backup(t, FilesOptions{Paths: []string{filepath.Join(root, "up/app")}})
	require.Equal(t, []string{root + "/up/app", root + "/up/app/f"}, names(files))
	require.Len(t, found.Warnings, 1)
	require.Contains(t, found.Warnings[0], root+"/up (user.note: permission denied)")
}
