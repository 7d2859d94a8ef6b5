package faultfs

import "github.com/hanwen/go-fuse/v2/fs"

// file is an open file that the kernel does not reach past us. Where it may, it keeps
// the first open file of an inode while any is open, and with it that one's flock.
type file struct{ *fs.LoopbackFile }

func (file) PassthroughFd() (int, bool) { return 0, false }

func ownFile(h fs.FileHandle) fs.FileHandle {
	if f, ok := h.(*fs.LoopbackFile); ok {
		return file{f}
	}
	return h
}
