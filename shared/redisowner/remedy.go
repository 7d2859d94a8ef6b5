package redisowner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// roomLeft is how many bytes a state directory has at least that is not called full.
const roomLeft = 1 << 20

// start is what to do where no worker runs.
const start = "start one with `worker run`, it brings the embedded Redis with it"

// Remedy says what to do where the embedded Redis does not answer: who keeps it, by the
// lock file at lock, and how it gets another owner. held tells that the lock was found
// held. The lock is not touched: whoever tries it, and is frozen there, would hold it.
func Remedy(lock string, held bool) string {
	if text := missing(lock); text != "" {
		return text
	}
	n, is, err := read(lock)
	who := fmt.Sprintf("worker PID %d (%s) on host %s", n.PID, n.Version, n.Host)
	const then = "then another worker, or a new `worker run`, starts Redis on its data, and a run of its goes on"
	full := full(lock)
	switch {
	case is == stopped:
		return fmt.Sprintf("%s keeps it and is stopped: let it go on (`kill -CONT %d`), or end it (`kill -9 %d`); %s", who, n.PID, n.PID, then)
	case full != "":
		return full
	case is == lives:
		return fmt.Sprintf("%s keeps it: try again in a minute, it starts a Redis that ended or hangs by itself; its log and %s say what keeps it. If its log says nothing it is frozen: end it (`kill -9 %d`); %s",
			who, filepath.Join(filepath.Dir(lock), "redis.log"), n.PID, then)
	case is == elsewhere && held:
		return fmt.Sprintf("%s keeps it, which cannot be looked at from here (another host or container): if it is frozen, end it there (`kill -9 %d`); %s", who, n.PID, then)
	case is == elsewhere:
		return fmt.Sprintf("is a worker running? %s kept it last, which cannot be looked at from here (another host or container): if it is frozen, end it there (`kill -9 %d`); if it is gone, %s",
			who, n.PID, start)
	case held:
		return fmt.Sprintf("a worker that has not told its number (one of an earlier version, or its disk was full) keeps it: `fuser %s` names it; if it is frozen, end it with `kill -9`; %s", lock, then)
	case errors.Is(err, fs.ErrPermission):
		return "is a worker running? " + start + "; if one runs, the same command as the worker's user names it, for it may be frozen"
	case err == nil && is == unknown:
		return fmt.Sprintf("is a worker running? %s; if one runs, it may be frozen: `fuser %s` names it, and `kill -9` lets another take over", start, lock)
	}
	return "is a worker running? " + start
}

// Place tells what is wrong with the state directory of the lock file, and what to do;
// "" if it is there and has room.
func Place(lock string) string {
	if text := missing(lock); text != "" {
		return text
	}
	return full(lock)
}

func missing(lock string) string {
	state := filepath.Dir(filepath.Dir(lock))
	if _, err := os.Stat(state); !errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return fmt.Sprintf("state_dir %s is not there: if it was moved, or its disk is not mounted, put it back: a worker that runs goes on then; if none runs, %s", state, start)
}

// full looks at the room for those who are not root, whom file systems keep some for.
func full(lock string) string {
	state := filepath.Dir(filepath.Dir(lock))
	var st syscall.Statfs_t
	if err := syscall.Statfs(state, &st); err != nil || st.Blocks == 0 || st.Bavail*uint64(st.Bsize) >= roomLeft && (st.Files == 0 || st.Ffree > 0) {
		return ""
	}
	return fmt.Sprintf("the disk of state_dir %s is full: make room, a worker that runs starts Redis by itself then; if none runs, %s", state, start)
}
