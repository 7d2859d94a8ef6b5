package restore

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
)

// parentsOf are the directories above path, from / on.
func parentsOf(path string) []string {
	var up []string
	for d := filepath.Dir(path); ; d = filepath.Dir(d) {
		up = append([]string{d}, up...)
		if d == "/" {
			return up
		}
	}
}

func modeOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
}

// Configured paths that lead through symbolic links: a good set, which restores, and in
// which the configured names lead to the files again.
func TestPathsThroughLinksComeBack(t *testing.T) {
	require.True(t, verified(t, source.manifest(source.dump)).Good)
	m, err := set.ReadManifest(source.manifest(source.dump))
	require.NoError(t, err)
	require.Equal(t, append([]string{source.app}, source.linked()...), m.Files.Paths)
	conf := filepath.Join(source.place(), "conf")
	require.Equal(t, []set.Place{{Configured: source.app, Resolved: source.app},
		{Configured: source.linked()[0], Resolved: conf, Way: []set.PlaceStep{{Path: source.root + "/current", Target: "srv/releases/5"}}},
		{Configured: source.linked()[1], Resolved: conf, Way: []set.PlaceStep{{Path: source.root + "/alias", Target: conf}}}}, m.Files.Places)

	target := filepath.Join(scratch(t), "target")
	source.restore(t, source.manifest(source.dump), "--target", target, "--only", "files")
	files := filepath.Join(target, "files")
	require.Equal(t, tree(t, conf), tree(t, filepath.Join(files, conf)))
	host := filepath.Join(scratch(t), "host") // as a machine's /
	require.NoError(t, os.Mkdir(host, 0o755))
	out, err := exec.Command("cp", "-a", files+"/.", host).CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, root := range []string{files, host} {
		for _, path := range append(parentsOf(filepath.Join(conf, "site.conf")), parentsOf(filepath.Join(source.app, "x"))...) {
			require.Equal(t, modeOf(t, path), modeOf(t, root+path), path)
		}
	}
	for _, name := range source.linked() {
		fd, err := unix.Open(host, unix.O_PATH|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		in, err := unix.Openat2(fd, strings.TrimPrefix(name, "/")+"/site.conf", &unix.OpenHow{Flags: unix.O_RDONLY, Resolve: unix.RESOLVE_IN_ROOT})
		require.NoError(t, errors.Join(err, unix.Close(fd)), name)
		b := make([]byte, 20)
		n, err := unix.Read(in, b)
		require.NoError(t, errors.Join(err, unix.Close(in)))
		require.Equal(t, "release 5", string(b[:n]))
	}
}

// A set of an earlier version, whose configured path led through a link: it is not called
// good, and what it says keeps no part from being restored.
func TestVerifyNamesOldSetsThroughLinks(t *testing.T) {
	dir, m := source.copyOf(t)
	path := filepath.Join(dir, source.id().MainName())
	sum := sha256.Sum256([]byte("evil"))
	f, err := os.Create(path)
	require.NoError(t, err)
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	m.Files.Entries, m.Files.Count, m.Files.Bytes, m.Files.Places = nil, 2, 4, nil
	m.Postgres, m.EventBus, m.Archives, m.Instructions = nil, nil, m.Archives[:1], nil
	for _, h := range []tar.Header{{Name: "files/opt/current", Typeflag: tar.TypeSymlink, Linkname: "5", Mode: 0o777}, {Name: "files/opt/current/f", Typeflag: tar.TypeReg, Size: 4, Mode: 0o640}} {
		require.NoError(t, w.WriteHeader(&h))
		e := set.File{Path: strings.TrimPrefix(h.Name, "files"), Kind: "symlink", Target: h.Linkname, Mode: "0777", ModTime: time.Unix(0, 0).UTC()}
		if h.Size > 0 {
			e.Kind, e.Size, e.SHA256, e.Mode = "file", 4, hex.EncodeToString(sum[:]), "0640"
			_, err = w.Write([]byte("evil"))
			require.NoError(t, err)
		}
		m.Files.Entries = append(m.Files.Entries, e)
	}
	copied := *m
	copied.Archives = []set.Archive{{Kind: m.Archives[0].Kind, Name: m.Archives[0].Name}}
	text, err := json.Marshal(&copied)
	require.NoError(t, err)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: set.ManifestCopy, Typeflag: tar.TypeReg, Size: int64(len(text))}))
	_, err = w.Write(text)
	require.NoError(t, errors.Join(err, w.Close(), z.Close(), f.Close()))
	signFile(t, dir, set.MainArchive, m)

	r := verified(t, source.manifest(dir))
	require.False(t, r.Good)
	require.Len(t, r.Damage, 1, "%v", r.Damage)
	require.Equal(t, FilesPart, r.Damage[0].Part)
	require.True(t, r.Damage[0].Restorable)
	require.Equal(t, "files/opt/current", r.Damage[0].Entry)
	require.Contains(t, r.Damage[0].Problem, "entries lie below this symbolic link (1)")

	target := filepath.Join(scratch(t), "target")
	v := source.warned(t, source.manifest(dir), "--target", target)
	require.Contains(t, strings.Join(v.Warnings, "\n"), "files/opt/current")
	content, err := os.ReadFile(filepath.Join(target, "files/opt/5/f"))
	require.NoError(t, err)
	require.Equal(t, "evil", string(content))
	to, err := os.Readlink(filepath.Join(target, "files/opt/current"))
	require.NoError(t, err)
	require.Equal(t, "5", to)
}

// passOn gives dir a default ACL, which passes to what is made in it.
func passOn(t testing.TB, dir string) {
	t.Helper()
	acl := []byte{2, 0, 0, 0}
	for _, e := range [][]byte{{1, 0, 7, 0, 255, 255, 255, 255}, {2, 0, 7, 0, 0xd2, 4, 0, 0}, {4, 0, 5, 0, 255, 255, 255, 255}, {16, 0, 7, 0, 255, 255, 255, 255}, {32, 0, 5, 0, 255, 255, 255, 255}} {
		acl = append(acl, e...)
	}
	require.NoError(t, unix.Setxattr(dir, "system.posix_acl_default", acl, 0))
}

// noACL looks at all that was restored: the source has no ACLs.
func noACL(t testing.TB, dir string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		b := make([]byte, 4096)
		n, e := unix.Llistxattr(path, b)
		require.NoError(t, errors.Join(err, e), path)
		require.NotContains(t, string(b[:n]), "posix_acl", path)
		return nil
	}))
}
