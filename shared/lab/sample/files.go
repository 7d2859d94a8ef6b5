package sample

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MakeTree makes an application directory with what makes backups of files hard. Owners
// other than ours, setuid, and files that only root can read, are there for root only.
func MakeTree(root string) error {
	t := &tree{root: root, r: rand.New(rand.NewPCG(1, 2))}
	t.dir("media/deep/" + strings.Repeat("a-rather-long-directory-name/", 6))
	t.dir("empty directory")
	for i := range 600 {
		t.file(fmt.Sprintf("conf/%02d/settings-%d.json", i%20, i), []byte(fmt.Sprintf("{\"n\": %d, \"text\": %q}\n", i, t.text(40+i%400))), 0o644)
	}
	t.file("logs/query.log", []byte(t.text(4<<20)), 0o640)
	t.file("media/deep/picture.bin", t.noise(6<<20), 0o600)
	t.file("media/archive.json.gz", t.packed(3<<20), 0o644)
	t.file("empty", nil, 0o600)
	t.file("name with\nnewline \"and\" 'quotes' \\ $HOME *", []byte("x"), 0o644)
	t.file("not utf-8 \xff\xfe\xe9", []byte("latin"), 0o644)
	t.file("ünïcödé 目录 🗂", []byte("unicode"), 0o644)
	t.file("-rf", []byte("an option?"), 0o644)
	t.file(strings.Repeat("n", 255), []byte("longest name"), 0o644)
	t.file("bin/tool", []byte("#!/bin/sh\n"), 0o755)
	t.file("bin/.hidden", []byte("hidden"), 0o1711)
	t.file("left out.tmp", []byte("excluded by files.exclude"), 0o644)
	t.dir("shared")
	t.do(os.Chmod(t.path("shared"), 0o777|os.ModeSticky))
	t.sparse("sparse.img", 64<<20)
	t.do(os.Link(t.path("media/deep/picture.bin"), t.path("media/same picture.bin")))
	t.do(os.Symlink("conf/00/settings-0.json", t.path("current")))
	t.do(os.Symlink("/etc/passwd", t.path("points out")))
	t.do(os.Symlink("nowhere/at all", t.path("dangling")))
	t.do(os.Symlink("..", t.path("media/parent")))
	t.do(unix.Mkfifo(t.path("pipe"), 0o600))
	t.socket("conf/socket")
	t.attribute("conf/00/settings-0.json", "user.origin", "catalog \x00 binary")
	if os.Geteuid() == 0 {
		t.file("secret", []byte("nobody may read it"), 0)
		t.do(os.Lchown(t.path("logs/query.log"), 12345, 54321))
		t.do(os.Lchown(t.path("dangling"), 777, 888))
		t.do(os.Lchown(t.path("shared"), 33, 33))
		// A restore by anybody else takes these bits away.
		t.file("bin/setuid", []byte("#!/bin/sh\n"), 0o6755)
		t.do(os.Chmod(t.path("shared"), 0o777|os.ModeSticky|os.ModeSetgid))
	}
	t.times()
	return t.err
}

type tree struct {
	root string
	r    *rand.Rand
	err  error
}

func (t *tree) path(name string) string { return filepath.Join(t.root, name) }

func (t *tree) do(err error) {
	if t.err == nil && err != nil {
		t.err = fmt.Errorf("make the application directory: %w", err)
	}
}

func (t *tree) dir(name string) { t.do(os.MkdirAll(t.path(name), 0o755)) }

func (t *tree) file(name string, content []byte, mode uint32) {
	t.dir(filepath.Dir(name))
	t.do(os.WriteFile(t.path(name), content, 0o600))
	t.do(syscall.Chmod(t.path(name), mode))
}

var treeWords = strings.Fields("catalog lineage query column table schema steward policy domain glossary article title owner trust flag popular filter join extract sample profile")

func (t *tree) text(n int) string {
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(treeWords[t.r.IntN(len(treeWords))])
		fmt.Fprintf(&b, " %d ", t.r.IntN(10000))
	}
	return b.String()[:n]
}

func (t *tree) noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(t.r.Uint32())
	}
	return b
}

func (t *tree) packed(n int) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = io.WriteString(z, t.text(n)) // a buffer takes everything
	_ = z.Close()
	return b.Bytes()
}

func (t *tree) sparse(name string, size int64) {
	f, err := os.Create(t.path(name))
	if err != nil {
		t.do(err)
		return
	}
	t.do(f.Truncate(size))
	for _, at := range []int64{0, 1 << 20, size - 5} {
		_, err := f.WriteAt([]byte("data!"), at)
		t.do(err)
	}
	t.do(f.Close())
}

// socket leaves the file of a unix socket behind. Its path may be too long for bind, so
// it is made in a short place first.
func (t *tree) socket(name string) {
	dir, err := os.MkdirTemp(filepath.Dir(t.root), "s")
	if err != nil {
		t.do(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.do(err)
		return
	}
	l.SetUnlinkOnClose(false)
	t.do(l.Close())
	t.do(os.Rename(filepath.Join(dir, "s"), t.path(name)))
}

func (t *tree) attribute(name, key, value string) {
	err := unix.Setxattr(t.path(name), key, []byte(value), 0)
	if !errors.Is(err, unix.ENOTSUP) {
		t.do(err)
	}
}

// times gives everything a time of its own, to the nanosecond, some before 1970. What is
// deeper comes first, since it changes the time of what is above.
func (t *tree) times() {
	var all []string
	t.do(filepath.WalkDir(t.root, func(path string, _ fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	}))
	sort.Sort(sort.Reverse(sort.StringSlice(all)))
	for i, path := range all {
		at := time.Date(2019, 3, 1, 2, 3, 4, 123456789, time.UTC).Add(time.Duration(i) * 1000003 * time.Microsecond)
		if i%97 == 5 {
			at = time.Date(1965, 7, 1, 0, 0, 0, 987654321, time.UTC)
		}
		ts := unix.NsecToTimespec(at.UnixNano())
		t.do(unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// Count is what Tree found.
type Count struct {
	Entries, Links int
	Bytes          int64
}

// Tree describes everything below root by its path there: kind, mode, owner (for root
// only, who alone can give files away), time, size, content, link target, extended
// attributes, and which entries are one file. What skip wants and what no backup stores
// (sockets, pipes) is left out.
func Tree(root string, skip func(path string) bool) (map[string]string, Count, error) {
	all, n := map[string]string{}, Count{}
	first := map[uint64]string{} // inode → the first path of a file with several names
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path) // it is below root
		if d.Type()&(fs.ModeSocket|fs.ModeNamedPipe) != 0 || skip(rel) {
			return nil
		}
		text, err := describe(path, rel, first, &n)
		if err != nil {
			return err
		}
		all[rel] = text
		n.Entries++
		return nil
	})
	return all, n, err
}

func describe(path, rel string, first map[uint64]string, n *Count) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "mode %o, time %d.%09d", st.Mode, st.Mtim.Sec, st.Mtim.Nsec)
	if os.Geteuid() == 0 {
		fmt.Fprintf(&b, ", owner %d:%d", st.Uid, st.Gid)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		n.Links++
		fmt.Fprintf(&b, ", to %q", target)
	case unix.S_IFREG:
		sum, err := contentHash(path)
		if err != nil {
			return "", err
		}
		n.Bytes += st.Size
		fmt.Fprintf(&b, ", %d bytes, content %s", st.Size, sum)
		if st.Nlink > 1 {
			if _, seen := first[st.Ino]; !seen {
				first[st.Ino] = rel
			} else {
				n.Links++
			}
			fmt.Fprintf(&b, ", the same file as %q", first[st.Ino])
		}
	}
	return b.String() + attributes(path), nil
}

func contentHash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:12]), nil
}

// attributes gives the user's extended attributes; none where there is no way to have any.
func attributes(path string) string {
	buf := make([]byte, 64<<10)
	size, err := unix.Llistxattr(path, buf)
	if err != nil || size <= 0 {
		return ""
	}
	names := strings.Split(strings.TrimRight(string(buf[:size]), "\x00"), "\x00")
	sort.Strings(names)
	var b strings.Builder
	for _, name := range names {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, 64<<10)
		if size, err := unix.Lgetxattr(path, name, value); err == nil {
			fmt.Fprintf(&b, ", %s=%q", name, value[:size])
		}
	}
	return b.String()
}
