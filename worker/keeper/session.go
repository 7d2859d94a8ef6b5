package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killLimit bounds the wait for processes that got SIGKILL. One that hangs in the
// kernel (a dead network file system) can take for ever.
const killLimit = 20 * time.Second

// proc is one line of /proc/PID/stat, proc(5).
type proc struct {
	pid, ppid, pgrp, session int
	state                    byte
	threads                  int
	start                    uint64 // field 22: clock ticks since boot; with pid it is unique
}

// alive tells whether p still runs. A zombie does not, unless only its first
// thread has ended.
func (p proc) alive() bool {
	return p.state != 'X' && p.state != 'x' && (p.state != 'Z' || p.threads > 1)
}

func readProc(pid int) (p proc, err error) {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return p, err
	}
	// The name in parentheses may itself hold parentheses and blanks.
	end := bytes.LastIndexByte(line, ')')
	fields := bytes.Fields(line[end+1:])
	if end < 0 || len(fields) < 20 || len(fields[0]) != 1 {
		return p, fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	p.pid, p.state = pid, fields[0][0]
	for i, to := range map[int]*int{1: &p.ppid, 2: &p.pgrp, 3: &p.session, 17: &p.threads} {
		if *to, err = strconv.Atoi(string(fields[i])); err != nil {
			return p, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
	}
	if p.start, err = strconv.ParseUint(string(fields[19]), 10, 64); err != nil {
		return p, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return p, nil
}

// processes lists all living processes.
func processes() ([]proc, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var all []proc
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		p, err := readProc(pid)
		switch {
		case errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH):
		case err != nil: // out of descriptors, say: never take that for "nobody there"
			return nil, err
		case p.alive():
			all = append(all, p)
		}
	}
	return all, nil
}

// members lists the living processes of session id without its leader.
func members(id int) ([]proc, error) {
	all, err := processes()
	var in []proc
	for _, p := range all {
		if p.session == id && p.pid != id {
			in = append(in, p)
		}
	}
	return in, err
}

// kin lists members and all other living descendants of the session's leader,
// which adopts the orphans among them.
func kin(id int) ([]proc, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	found := map[int]bool{id: true}
	var in []proc
	for grew := true; grew; {
		grew = false
		for _, p := range all {
			if !found[p.pid] && (p.session == id || found[p.ppid]) {
				found[p.pid], grew = true, true
				in = append(in, p)
			}
		}
	}
	return in, nil
}

// send signals p, and only p: a process that got its number meanwhile is spared.
func send(p proc, sig syscall.Signal) {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err == nil {
		defer unix.Close(fd)
	}
	// Read again with the descriptor in hand: if this is still p, so is that.
	if now, nerr := readProc(p.pid); nerr != nil || now.start != p.start {
		return
	}
	if err == nil {
		err = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.EINVAL) {
		_ = syscall.Kill(p.pid, sig) // kernels before 5.3, sandboxes; nothing more can be done about a refusal
	}
}

// lister tells which processes are to be ended.
type lister func() ([]proc, error)

// end ends what list finds: SIGTERM and patience for gentle, if that is not 0,
// then SIGKILL until nothing is found. It returns what killLimit did not suffice
// for. A closed hurry cuts gentle short.
func end(list lister, gentle time.Duration, hurry <-chan struct{}) (stuck []proc, err error) {
	if gentle > 0 {
		told := map[proc]bool{}
		poll(gentle, hurry, func() bool {
			if stuck, err = list(); err != nil {
				return false
			}
			for _, p := range stuck {
				key := proc{pid: p.pid, start: p.start}
				if !told[key] {
					told[key] = true
					send(p, syscall.SIGTERM)
					send(p, syscall.SIGCONT) // a stopped one would not hear it
				}
			}
			return len(stuck) == 0
		})
		if err == nil && len(stuck) == 0 {
			return nil, nil
		}
	}
	poll(killLimit, nil, func() bool {
		if stuck, err = list(); err != nil {
			return false
		}
		for _, p := range stuck {
			send(p, syscall.SIGKILL)
		}
		return len(stuck) == 0
	})
	return stuck, err
}

// poll calls done at once and then again and again until it is true, limit is
// over or hurry is closed.
func poll(limit time.Duration, hurry <-chan struct{}, done func() bool) {
	over := time.NewTimer(limit)
	defer over.Stop()
	for wait := time.Millisecond; !done(); wait = min(2*wait, 50*time.Millisecond) {
		select {
		case <-time.After(wait):
		case <-over.C:
			return
		case <-hurry:
			return
		}
	}
}

func pids(of []proc) []int {
	var n []int
	for _, p := range of {
		n = append(n, p.pid)
	}
	return n
}
