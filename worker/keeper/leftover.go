package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// note is what a PID file holds: enough to tell, on the same host and boot, a
// left-over from a stranger that got its number.
type note struct {
	Boot        string        `json:"boot"`                    // /proc/sys/kernel/random/boot_id
	Namespace   string        `json:"pid_namespace,omitempty"` // /proc/self/ns/pid: containers share a boot; "": unknown, by an earlier version
	Keeper      int           `json:"keeper"`                  // the keeper's number = id of its session
	KeeperStart uint64        `json:"keeper_start"`
	Tool        int           `json:"tool"` // 0: not started yet
	ToolStart   uint64        `json:"tool_start"`
	Pipes       []uint64      `json:"pipes"`  // inodes of the tool's pipes to the worker, which its children inherit
	Gentle      time.Duration `json:"gentle"` // nanoseconds
}

// write completes n and puts it at path, if that is not empty. It need not
// survive a crash of the machine: the processes do not either.
func (n note) write(path string, keeper, tool int) error {
	if path == "" {
		return nil
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	n.Boot, n.Namespace, n.Keeper, n.Tool = boot, pidNamespace(), keeper, tool
	p, err := readProc(keeper)
	if err != nil {
		return fmt.Errorf("reading the keeper's start time: %w", err)
	}
	n.KeeperStart = p.start
	if tool != 0 {
		if p, err = readProc(tool); err != nil {
			return fmt.Errorf("reading the tool's start time: %w", err)
		}
		n.ToolStart = p.start
	}
	body, err := json.Marshal(n)
	if err != nil {
		return err
	}
	part := path + "." + strconv.Itoa(keeper) + ".part"
	if err := os.WriteFile(part, body, 0o600); err != nil {
		_ = os.Remove(part)
		return fmt.Errorf("writing the PID file: %w", err)
	}
	if err := os.Rename(part, path); err != nil {
		_ = os.Remove(part)
		return fmt.Errorf("writing the PID file: %w", err)
	}
	return nil
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// pidNamespace is where our process numbers mean what they say; "" if that is unknown.
func pidNamespace() string {
	name, _ := os.Readlink("/proc/self/ns/pid")
	return name
}

// here tells whether the note's numbers are those of this host, boot and container.
func (n note) here() (bool, error) {
	boot, err := bootID()
	if err != nil {
		return false, err
	}
	ours := pidNamespace()
	return boot == n.Boot && (ours == "" || n.Namespace == "" || ours == n.Namespace), nil
}

// readNote reads a PID file. There is no note if there is no file.
func readNote(path string) (l *leftover, there bool, err error) {
	body, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("reading the PID file: %w", err)
	}
	var n note
	if err := json.Unmarshal(body, &n); err != nil || n.Keeper <= 1 {
		// It came to be by a rename, so only a crash of the machine can have cut it:
		// then its processes are gone too, and a cleanup must not stop here.
		return nil, false, nil
	}
	l = &leftover{note: n, known: map[int]uint64{}}
	if n.Tool != 0 {
		l.known[n.Tool] = n.ToolStart
	}
	return l, true, nil
}

// leftover is a noted group that is looked at again and again.
type leftover struct {
	note
	known map[int]uint64 // processes proved to be of it: number, start time
}

// group lists the processes that still live, the keeper included. A session's
// number is not given away while one member lives, so one proof is enough for all:
// keeper or tool with the noted start time, a process proved before, or any
// process of the session that holds the noted pipe.
func (n *leftover) group() ([]proc, error) {
	if here, err := n.here(); err != nil || !here {
		return nil, err
	}
	in, err := members(n.Keeper)
	if err != nil {
		return nil, fmt.Errorf("listing the processes of group %d: %w", n.Keeper, err)
	}
	proved := false
	for _, p := range in {
		if start, ok := n.known[p.pid]; (ok && start == p.start) || holdsPipe(p.pid, n.Pipes) {
			proved = true
		}
	}
	if leader, err := readProc(n.Keeper); err == nil && leader.start == n.KeeperStart {
		proved = true
		if leader.alive() {
			in = append(in, leader)
		}
	}
	if !proved {
		return nil, nil
	}
	for _, p := range in {
		n.known[p.pid] = p.start
	}
	return in, nil
}

// holdsPipe tells whether process pid has a pipe with one of these inodes open.
func holdsPipe(pid int, inodes []uint64) bool {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue
		}
		for _, inode := range inodes {
			if to == fmt.Sprintf("pipe:[%d]", inode) {
				return true
			}
		}
	}
	return false
}

// Leftover lists the living processes of the group that pidfile notes, its keeper
// included. It finds none if there is no such file, if the group is gone, or if
// the file was written on another host, in another container or before a reboot.
// Whether their worker still lives it does not know.
func Leftover(pidfile string) ([]int, error) {
	n, there, err := readNote(pidfile)
	if err != nil || !there {
		return nil, err
	}
	in, err := n.group()
	return pids(in), err
}

// EndLeftover ends the group that pidfile notes, as gently as its command asked
// for, waits until it is gone and removes the file. When ctx ends it no longer
// waits gently. It touches only processes that are proved to be of that group, and
// leaves a file of another host, container or boot as it is: its own may need it.
func EndLeftover(ctx context.Context, pidfile string) error {
	n, there, err := readNote(pidfile)
	if err != nil || !there {
		return err
	}
	if here, err := n.here(); err != nil || !here {
		return err
	}
	// The keeper last: as long as it lives it does the same, and adopts orphans.
	tools := func() ([]proc, error) {
		in, err := n.group()
		for i, p := range in {
			if p.pid == n.Keeper {
				return append(in[:i:i], in[i+1:]...), err
			}
		}
		return in, err
	}
	left, err := end(tools, n.Gentle, ctx.Done())
	if err == nil && len(left) == 0 {
		left, err = n.endKeeper()
	}
	if err != nil {
		return fmt.Errorf("ending the processes that a worker left: %w", err)
	}
	if len(left) > 0 {
		return fmt.Errorf("ending the processes that a worker left: %v outlive SIGKILL (hung file system?); end them and try again", pids(left))
	}
	if err := os.Remove(pidfile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the PID file: %w", err)
	}
	return nil
}

// endKeeper lets the keeper end by itself, which takes it a moment, before it is
// killed with whatever it started last.
func (n *leftover) endKeeper() ([]proc, error) {
	var left []proc
	var err error
	poll(time.Second, nil, func() bool {
		left, err = n.group()
		return err == nil && len(left) == 0
	})
	if err == nil && len(left) == 0 {
		return nil, nil
	}
	for _, p := range left {
		send(p, syscall.SIGKILL)
	}
	return end(n.group, 0, nil)
}
