package main

import (
	"os"
	"os/user"
	"strconv"
	"syscall"

	"catalog-backup/shared/config"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

func groupID(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// ioprio_set(2): class in the upper three bits, level below.
const (
	ioprioWhoProcess = 1
	ioprioClassShift = 13
	ioBestEffort     = 2
	ioIdle           = 3
)

// lowerPriority sets nice and I/O class of every thread there is; later ones
// inherit from the thread that makes them. On Linux both belong to threads.
func lowerPriority(c *config.Config, log *logrus.Logger) {
	class := map[string]int{"best-effort": ioBestEffort<<ioprioClassShift | 4, "idle": ioIdle << ioprioClassShift}[c.Archive.IOClass]
	if c.Archive.Nice == 0 && class == 0 {
		return
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		log.WithError(err).Warn("cannot lower the priority")
		return
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if c.Archive.Nice != 0 {
			if err := syscall.Setpriority(syscall.PRIO_PROCESS, tid, c.Archive.Nice); err != nil {
				log.WithError(err).Warn("cannot set archive.nice")
				return
			}
		}
		if class != 0 {
			if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(tid), uintptr(class)); e != 0 {
				log.WithError(e).Warn("cannot set archive.io_class")
				return
			}
		}
	}
}
