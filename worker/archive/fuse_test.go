package archive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// faulty is a file system that gives errors: a directory of files and directories, each
// directory with a file "in". Protocol: linux/fuse.h, version 7.31.
type faulty struct {
	fd    int
	names []string // node number - 2; a name that ends with "dir" is a directory
	// fault gives the error of an operation on a name, at an offset; 0: none.
	fault func(op, name string, at uint64) unix.Errno
}

// Operations by their numbers.
var fuseOps = map[uint32]string{1: "lookup", 2: "forget", 3: "getattr", 14: "open", 15: "read", 17: "statfs", 18: "release", 22: "getxattr", 23: "listxattr",
	25: "flush", 26: "init", 27: "opendir", 28: "readdir", 29: "releasedir", 42: "batch_forget"}

const fuseContent = "content of the file"

// mountFaulty mounts the file system and gives its directory.
func mountFaulty(t *testing.T, names []string, fault func(op, name string, at uint64) unix.Errno) string {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Mount("faulty", dir, "fuse", unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)))
	served(t, dir, &faulty{fd: fd, names: names, fault: fault})
	return dir
}

// served answers until the test ends.
func served(t *testing.T, dir string, f *faulty) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.serve()
	}()
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		<-ended
		unix.Close(f.fd)
	})
	// Go's runtime asks for readiness (epoll_ctl) by a call that holds its processor, and
	// would wait for itself. Once it was told that there is no such operation, the kernel
	// never asks again.
	p, err := unix.Open(dir+"/"+pollable, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}, 0)
	require.NoError(t, err)
	unix.Close(p)
}

// pollable is a file that is in no listing.
const pollable, pollNode = ".poll", 999

func (f *faulty) serve() {
	b := make([]byte, 1<<20)
	for {
		n, err := unix.Read(f.fd, b)
		if err == unix.EINTR || err == unix.ENOENT {
			continue
		}
		if err != nil {
			return // unmounted
		}
		in := b[:n]
		op := fuseOps[binary.LittleEndian.Uint32(in[4:])]
		if strings.HasSuffix(op, "forget") {
			continue
		}
		body, errno := f.answer(op, binary.LittleEndian.Uint64(in[16:]), in[40:])
		out := binary.LittleEndian.AppendUint32(nil, uint32(16+len(body)))
		out = binary.LittleEndian.AppendUint32(out, uint32(-int32(errno)))
		out = append(out, in[8:16]...)
		_, _ = unix.Write(f.fd, append(out, body...))
	}
}

// name is what a node is called: "" for the root, "x/in" for a directory's file.
func (f *faulty) name(node uint64) string {
	switch {
	case node <= 1:
		return ""
	case node == pollNode:
		return pollable
	}
	if node >= 1000 {
		return f.names[node-1000] + "/in"
	}
	return f.names[node-2]
}

func (f *faulty) isDir(node uint64) bool { return node == 1 || strings.HasSuffix(f.name(node), "dir") }

func (f *faulty) answer(op string, node uint64, in []byte) ([]byte, unix.Errno) {
	var at uint64
	name := f.name(node)
	switch op {
	case "lookup":
		name = string(bytes.TrimRight(in, "\x00"))
	case "read", "readdir":
		at = binary.LittleEndian.Uint64(in[8:])
	}
	if e := f.fault(op, name, at); e != 0 {
		return nil, e
	}
	switch op {
	case "init":
		out := make([]byte, 64)
		for i, v := range []uint32{7, 31, 0, 0, 0, 1 << 16, 1} {
			binary.LittleEndian.PutUint32(out[4*i:], v)
		}
		return out, 0
	case "lookup":
		return f.lookup(node, name)
	case "getattr":
		return append(make([]byte, 16), f.attr(node)...), 0
	case "open":
		return append(make([]byte, 8), 1, 0, 0, 0, 0, 0, 0, 0), 0 // FOPEN_DIRECT_IO
	case "opendir":
		return make([]byte, 16), 0
	case "read":
		return []byte(fuseContent)[min(at, uint64(len(fuseContent))):], 0
	case "readdir":
		return f.list(node, at), 0
	case "listxattr":
		return []byte("user.note\x00"), 0
	case "getxattr":
		return []byte("value"), 0
	case "statfs":
		return make([]byte, 80), 0
	case "flush", "release", "releasedir":
		return nil, 0
	}
	return nil, unix.ENOSYS
}

func (f *faulty) lookup(dir uint64, name string) ([]byte, unix.Errno) {
	node := uint64(0)
	if name == pollable {
		node = pollNode
	} else if dir == 1 {
		for i, n := range f.names {
			if n == name {
				node = uint64(i) + 2
			}
		}
	} else if name == "in" {
		node = dir + 998
	}
	if node == 0 {
		return nil, unix.ENOENT
	}
	out := binary.LittleEndian.AppendUint64(nil, node)
	return append(append(out, make([]byte, 32)...), f.attr(node)...), 0
}

func (f *faulty) attr(node uint64) []byte {
	mode, size := uint32(unix.S_IFREG|0640), uint64(len(fuseContent))
	if f.isDir(node) {
		mode, size = unix.S_IFDIR|0750, 0
	}
	var out []byte
	for _, v := range []uint64{node, size, 1, 1e9, 1e9, 1e9} {
		out = binary.LittleEndian.AppendUint64(out, v)
	}
	for _, v := range []uint32{0, 0, 0, mode, 1, 0, 0, 0, 4096, 0} {
		out = binary.LittleEndian.AppendUint32(out, v)
	}
	return out
}

// list gives one name at a time, so that a listing may break off in the middle.
func (f *faulty) list(dir, at uint64) []byte {
	names := []string{"in"}
	if dir == 1 {
		names = f.names
	}
	if at >= uint64(len(names)) {
		return nil
	}
	name := names[at]
	out := binary.LittleEndian.AppendUint64(nil, 7)
	out = binary.LittleEndian.AppendUint64(out, at+1)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(name)))
	out = binary.LittleEndian.AppendUint32(out, 0)
	return append(append(out, name...), make([]byte, -len(name)&7)...)
}
