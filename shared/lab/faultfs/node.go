package faultfs

import (
	"context"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// node is a file or directory: each method asks first, and then does what a loopback
// does.
type node struct {
	*fs.LoopbackNode
	f *FS
}

// WrapChild makes a node of ours of each that the loopback finds.
func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{LoopbackNode: ops.(*fs.LoopbackNode), f: n.f}
}

func (n *node) at() string { return n.Path(n.Root()) }

func (n *node) ask(kind string) syscall.Errno { return n.f.ask(Op{Kind: kind, Path: n.at()}) }

func (n *node) askIn(kind, name string) syscall.Errno {
	return n.f.ask(Op{Kind: kind, Path: filepath.Join(n.at(), name)})
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.askIn(Lookup, name); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Lookup(ctx, name, out)
}

func (n *node) Getattr(ctx context.Context, h fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if e := n.ask(Getattr); e != 0 {
		return e
	}
	return n.LoopbackNode.Getattr(ctx, h, out)
}

func (n *node) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if e := n.ask(Setattr); e != 0 {
		return e
	}
	return n.LoopbackNode.Setattr(ctx, h, in, out)
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if e := n.f.ask(Op{Kind: Open, Path: n.at(), Flags: flags}); e != 0 {
		return nil, 0, e
	}
	h, _, e := n.LoopbackNode.Open(ctx, flags)
	return ownFile(h), fuse.FOPEN_DIRECT_IO, e
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if e := n.f.ask(Op{Kind: Create, Path: filepath.Join(n.at(), name), Flags: flags}); e != 0 {
		return nil, nil, 0, e
	}
	i, h, _, e := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return i, ownFile(h), fuse.FOPEN_DIRECT_IO, e
}

func (n *node) Read(ctx context.Context, h fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if e := n.ask(Read); e != 0 {
		return nil, e
	}
	return h.(fs.FileReader).Read(ctx, dest, off)
}

func (n *node) Write(ctx context.Context, h fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if e := n.ask(Write); e != 0 {
		return 0, e
	}
	return h.(fs.FileWriter).Write(ctx, data, off)
}

func (n *node) Flush(ctx context.Context, h fs.FileHandle) syscall.Errno {
	if e := n.ask(Flush); e != 0 {
		return e
	}
	return h.(fs.FileFlusher).Flush(ctx)
}

func (n *node) Fsync(ctx context.Context, h fs.FileHandle, flags uint32) syscall.Errno {
	if e := n.ask(Fsync); e != 0 {
		return e
	}
	return h.(fs.FileFsyncer).Fsync(ctx, flags)
}

func (n *node) Setlk(ctx context.Context, h fs.FileHandle, owner uint64, lk *fuse.FileLock, flags uint32) syscall.Errno {
	if e := n.ask(Lock); e != 0 {
		return e
	}
	return h.(fs.FileSetlker).Setlk(ctx, owner, lk, flags)
}

func (n *node) Setlkw(ctx context.Context, h fs.FileHandle, owner uint64, lk *fuse.FileLock, flags uint32) syscall.Errno {
	if e := n.ask(Lock); e != 0 {
		return e
	}
	return h.(fs.FileSetlkwer).Setlkw(ctx, owner, lk, flags)
}

func (n *node) Getlk(ctx context.Context, h fs.FileHandle, owner uint64, lk *fuse.FileLock, flags uint32, out *fuse.FileLock) syscall.Errno {
	return h.(fs.FileGetlker).Getlk(ctx, owner, lk, flags, out)
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.askIn(Mkdir, name); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Mkdir(ctx, name, mode, out)
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	if e := n.askIn(Rmdir, name); e != 0 {
		return e
	}
	return n.LoopbackNode.Rmdir(ctx, name)
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	if e := n.askIn(Unlink, name); e != 0 {
		return e
	}
	return n.LoopbackNode.Unlink(ctx, name)
}

func (n *node) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	op := Op{Kind: Rename, Path: filepath.Join(n.at(), name), To: filepath.Join(to.(*node).at(), newName), Flags: flags}
	if e := n.f.ask(op); e != 0 {
		return e
	}
	return n.LoopbackNode.Rename(ctx, name, to, newName, flags)
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.f.ask(Op{Kind: Link, Path: filepath.Join(n.at(), name), To: target.(*node).at()}); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Link(ctx, target, name, out)
}

func (n *node) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.askIn(Symlink, name); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Symlink(ctx, target, name, out)
}

func (n *node) Readlink(ctx context.Context) ([]byte, syscall.Errno) {
	if e := n.ask(Readlink); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Readlink(ctx)
}

func (n *node) Mknod(ctx context.Context, name string, mode, rdev uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.askIn(Mknod, name); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Mknod(ctx, name, mode, rdev, out)
}

func (n *node) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	if e := n.ask(Statfs); e != 0 {
		return e
	}
	return n.LoopbackNode.Statfs(ctx, out)
}

func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if e := n.f.ask(Op{Kind: Opendir, Path: n.at(), Flags: flags}); e != 0 {
		return nil, 0, e
	}
	h, _, e := n.LoopbackNode.OpendirHandle(ctx, flags)
	if e != 0 {
		return nil, 0, e
	}
	return &listing{openDir: h.(openDir), n: n}, 0, 0
}

// openDir is what a loopback gives for an open directory.
type openDir interface {
	fs.FileReaddirenter
	fs.FileReleasedirer
	fs.FileSeekdirer
	fs.FileFsyncdirer
}

// listing is an open directory. Each entry that is read is asked for.
type listing struct {
	openDir
	n *node
}

func (l *listing) Readdirent(ctx context.Context) (*fuse.DirEntry, syscall.Errno) {
	if e := l.n.ask(Readdir); e != 0 {
		return nil, e
	}
	return l.openDir.Readdirent(ctx)
}

func (l *listing) Fsyncdir(ctx context.Context, flags uint32) syscall.Errno {
	if e := l.n.ask(Fsyncdir); e != 0 {
		return e
	}
	return l.openDir.Fsyncdir(ctx, flags)
}
