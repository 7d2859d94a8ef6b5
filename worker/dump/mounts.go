package dump

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is the mount that a directory is on, by /proc/self/mountinfo (proc(5)).
type Mount struct {
	Point   string
	Type    string
	Source  string
	Options []string // of the mount, then of the file system
}

// MountOf finds the mount that dir, or the nearest directory above it that exists, is
// on, by the id that the kernel gives an open file of it: links and mounts over mounts
// need no thought, and a file server that does not answer is not asked.
func MountOf(dir string) (Mount, error) {
	bad := func(err error) (Mount, error) { return Mount{}, fmt.Errorf("find the mount of %s: %w", dir, err) }
	f, err := openNearest(dir)
	if err != nil {
		return bad(err)
	}
	defer f.Close()
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if err != nil {
		return bad(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return bad(err)
	}
	for s := bufio.NewScanner(strings.NewReader(string(info))); s.Scan(); {
		if id, ok := strings.CutPrefix(s.Text(), "mnt_id:"); ok {
			if m, ok := mountByID(strings.TrimSpace(id), string(mounts)); ok {
				return m, nil
			}
		}
	}
	return bad(errors.New("/proc does not name it"))
}

func openNearest(dir string) (*os.File, error) {
	for {
		f, err := os.OpenFile(dir, unix.O_PATH, 0)
		up := filepath.Dir(dir)
		if err == nil || up == dir {
			return f, err
		}
		dir = up
	}
}

func mountByID(id, mountinfo string) (Mount, bool) {
	for s := bufio.NewScanner(strings.NewReader(mountinfo)); s.Scan(); {
		if first, _, _ := strings.Cut(s.Text(), " "); first == id {
			return parseMount(s.Text())
		}
	}
	return Mount{}, false
}

// parseMount reads a line: "36 35 98:0 /root /point options optional… - type source options".
func parseMount(line string) (Mount, bool) {
	first, second, ok := strings.Cut(line, " - ")
	a, b := strings.Fields(first), strings.Fields(second)
	if !ok || len(a) < 6 || len(b) < 2 {
		return Mount{}, false
	}
	m := Mount{Point: unescape(a[4]), Type: unescape(b[0]), Source: unescape(b[1]), Options: strings.Split(a[5], ",")}
	if len(b) > 2 {
		m.Options = append(m.Options, strings.Split(b[2], ",")...)
	}
	return m, true
}

// unescape reads blanks, tabs, newlines and backslashes, which are \ooo there.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// localTypes are file systems of one kernel: no other host can have their files open.
var localTypes = map[string]bool{"ext2": true, "ext3": true, "ext4": true, "xfs": true, "btrfs": true, "zfs": true, "f2fs": true, "bcachefs": true, "jfs": true,
	"reiserfs": true, "tmpfs": true, "ramfs": true, "rootfs": true, "overlay": true, "vfat": true, "exfat": true, "ntfs3": true, "fuseblk": true}

// Local tells that no other host can share the file system.
func (m Mount) Local() bool { return localTypes[m.Type] }

// HostLocal gives the mount option that keeps flocks on this host, "" if none is known to.
func (m Mount) HostLocal() string {
	for _, o := range m.Options {
		switch {
		case m.Type == "nfs" || m.Type == "nfs4":
			if o == "local_lock=flock" || o == "local_lock=all" || o == "nolock" {
				return o
			}
		case m.Type == "cifs" || m.Type == "smb3" || m.Type == "smb2":
			if o == "nobrl" {
				return o
			}
		}
	}
	return ""
}

// String is the mount for people: "nfs4 of server:/export at /mnt with local_lock=all".
func (m Mount) String() string {
	s := fmt.Sprintf("%s of %s at %s", m.Type, m.Source, m.Point)
	if o := m.HostLocal(); o != "" {
		s += " with " + o
	}
	return s
}
