// Package faultfs is a file system for tests: it passes every operation through to a
// directory, after a hook was asked, which may let it fail, wait or hang. Nothing is
// cached, so that each system call reaches the hook. Inode numbers, times, flags of
// rename and locks are those of the directory. It is mounted by root, without any
// helper program.
//
// A process may wait for a file system that it serves itself, except in a child
// between fork and exec: start no child whose working directory lies on it.
package faultfs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The kinds of operations. Operations on an open file or directory are among them,
// but for its release.
const (
	Lookup   = "lookup"
	Getattr  = "getattr"
	Setattr  = "setattr" // also truncate, chmod, chown, utimes
	Open     = "open"
	Create   = "create"
	Read     = "read"
	Write    = "write"
	Flush    = "flush" // close(2)
	Fsync    = "fsync"
	Opendir  = "opendir"
	Readdir  = "readdir"
	Fsyncdir = "fsyncdir"
	Mkdir    = "mkdir"
	Rmdir    = "rmdir"
	Unlink   = "unlink"
	Rename   = "rename"
	Link     = "link"
	Symlink  = "symlink"
	Readlink = "readlink"
	Mknod    = "mknod"
	Statfs   = "statfs"
	Lock     = "lock" // flock and fcntl, to take or to free
)

// Op is one operation that is about to be done.
type Op struct {
	Kind string
	Path string // of what it works on, relative to the mount; "" is its root
	To   string // rename: the new path; link: the path of the file that gets a name
	// Flags are those of open, create (O_…) and rename (RENAME_…).
	Flags uint32
	// N counts the operations since the hook was set; the first has 1.
	N int
}

// FS is one mounted file system.
type FS struct {
	Path    string // where it is mounted
	Backing string // the directory that it shows

	mu     sync.Mutex
	hook   func(Op) syscall.Errno
	n      int
	server *fuse.Server
	served chan struct{}
	once   sync.Once
}

// Option changes how a file system is mounted.
type Option func(*options)

type options struct {
	at    string
	local bool
}

// At mounts on an existing directory instead of a new one.
func At(path string) Option { return func(o *options) { o.at = path } }

// LocalLocks keeps locks to this mount, as NFS with local_lock or nolock does: two
// mounts of one directory do not see each other's.
func LocalLocks() Option { return func(o *options) { o.local = true } }

// Mount shows the directory backing through a new file system until the test ends.
func Mount(t testing.TB, backing string, opts ...Option) *FS {
	t.Helper()
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if o.at == "" {
		o.at = t.TempDir()
	}
	f := &FS{Path: o.at, Backing: backing, served: make(chan struct{})}
	if err := f.mount(o.local); err != nil {
		t.Fatalf("faultfs: mount %s on %s: %v", backing, o.at, err)
	}
	t.Cleanup(func() {
		f.Hook(nil)
		f.end()
		select {
		case <-f.served:
		case <-time.After(10 * time.Second):
			t.Errorf("faultfs: files are still open on %s, or a hook still waits", f.Path)
		}
	})
	return f
}

func (f *FS) mount(localLocks bool) error {
	var st unix.Stat_t
	if err := unix.Stat(f.Backing, &st); err != nil {
		return err
	}
	root, err := fs.NewLoopbackRoot(f.Backing)
	if err != nil {
		return err
	}
	top := &node{LoopbackNode: root.(*fs.LoopbackNode), f: f}
	never := time.Duration(0)
	raw := fs.NewNodeFS(top, &fs.Options{EntryTimeout: &never, AttrTimeout: &never, NegativeTimeout: &never,
		RootStableAttr: &fs.StableAttr{Ino: st.Ino, Gen: 1}})
	server, err := fuse.NewServer(raw, f.Path, &fuse.MountOptions{FsName: f.Backing, Name: "faultfs", DirectMountStrict: true, AllowOther: true,
		EnableLocks: !localLocks, DisableReadDirPlus: true, MaxWrite: 1 << 20, DirectMountFlags: unix.MS_NODEV | unix.MS_NOSUID})
	if err != nil {
		return err
	}
	f.server = server
	go func() { server.Serve(); close(f.served) }()
	return server.WaitMount()
}

// Hook sets what is asked before each operation: 0 lets it be done, another number is
// its error. It is called by several goroutines at once, and may wait. nil: nothing is
// asked. The count begins anew.
func (f *FS) Hook(hook func(Op) syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook, f.n = hook, 0
}

// Count tells how many operations there were since Hook was called.
func (f *FS) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

func (f *FS) ask(op Op) syscall.Errno {
	f.mu.Lock()
	f.n++
	op.N = f.n
	hook := f.hook
	f.mu.Unlock()
	if hook == nil {
		return 0
	}
	return hook(op)
}

// Unmount takes the file system away from its directory, which is then what it was
// before; files that are open go on working (umount -l).
func (f *FS) Unmount() error { return unix.Unmount(f.Path, unix.MNT_DETACH) }

// Die ends the file system as a lost server does: it stays mounted, and every
// operation fails with ENOTCONN, also on files that are open.
func (f *FS) Die() error {
	busy, err := os.Open(f.Path) // so that it is not unmounted
	if err != nil {
		return err
	}
	defer busy.Close()
	if err := unix.Unmount(f.Path, unix.MNT_FORCE); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("end the file system on %s: %w", f.Path, err)
	}
	return nil
}

// end unmounts for good: what still waits gets an error.
func (f *FS) end() { f.once.Do(func() { _ = unix.Unmount(f.Path, unix.MNT_FORCE|unix.MNT_DETACH) }) }
