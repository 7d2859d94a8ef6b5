package archive

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// FreeSpace is how many bytes the worker may still write to the file system that
// path lies on (or will lie on: the nearest directory that exists counts).
func FreeSpace(path string) (int64, error) {
	for {
		var fs unix.Statfs_t
		err := unix.Statfs(path, &fs)
		if err == nil {
			avail := fs.Bavail
			if os.Geteuid() == 0 {
				avail = fs.Bfree // root may use the reserve
			}
			unit := int64(fs.Frsize)
			if unit == 0 {
				unit = int64(fs.Bsize)
			}
			return int64(avail) * unit, nil
		}
		if err != unix.ENOENT || path == "/" || path == "." {
			return 0, fmt.Errorf("ask for free space at %s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
}

// I/O classes of the kernel's schedulers (ioprio_set(2)).
const (
	IONone       = ""            // leave it as it is
	IOBestEffort = "best-effort" // with a level from 0 (first) to 7
	IOIdle       = "idle"        // only when nobody else wants the disk
)

// Priority is how much the worker and the programs it starts stand back for others.
type Priority struct {
	Nice    int    // 0 to 19
	IOClass string // IONone, IOBestEffort or IOIdle
	IOLevel int    // of IOBestEffort
}

// Apply sets the priority of all threads of this process; new threads and child
// processes inherit it. It can't be taken back without privileges, so it is for the
// start of the worker.
func (p Priority) Apply() error {
	if p.Nice < 0 || p.Nice > 19 {
		return fmt.Errorf("nice %d: give a number from 0 to 19", p.Nice)
	}
	io, err := p.ioprio()
	if err != nil {
		return err
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("set the priority: %w", err)
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if p.Nice > 0 {
			if err := unix.Setpriority(unix.PRIO_PROCESS, tid, p.Nice); err != nil && err != unix.ESRCH {
				return fmt.Errorf("set nice %d: %w", p.Nice, err)
			}
		}
		if io >= 0 {
			const whoProcess = 1 // IOPRIO_WHO_PROCESS
			if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(tid), uintptr(io)); e != 0 && e != unix.ESRCH {
				return fmt.Errorf("set I/O class %s: %w", p.IOClass, e)
			}
		}
	}
	return nil
}

func (p Priority) ioprio() (int, error) {
	const shift, bestEffort, idle = 13, 2, 3 // IOPRIO_CLASS_* of linux/ioprio.h
	switch p.IOClass {
	case IONone:
		return -1, nil
	case IOBestEffort:
		if p.IOLevel < 0 || p.IOLevel > 7 {
			return 0, fmt.Errorf("I/O level %d: give a number from 0 to 7", p.IOLevel)
		}
		return bestEffort<<shift | p.IOLevel, nil
	case IOIdle:
		return idle << shift, nil
	}
	return 0, fmt.Errorf("I/O class %q: give %s, %s or nothing", p.IOClass, IOBestEffort, IOIdle)
}
