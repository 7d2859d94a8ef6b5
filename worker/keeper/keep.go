package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// keep is the keeper's whole life. Its result is the process's exit code; what
// happened is told by reports.
func keep() int {
	// The tool's parent-death signal follows the thread that forks it.
	runtime.LockOSThread()
	for _, fd := range []int{controlFD, statusFD} {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			fmt.Fprintln(os.Stderr, "this verb is internal: the worker starts it for its child processes")
			return 2
		}
		unix.CloseOnExec(fd) // the tool must hold neither
	}
	// Nor anything that the worker itself inherited.
	_ = unix.CloseRange(controlFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // kernels before 5.11 cannot; ours are done
	// Caught and dropped, not ignored: the tool would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	_ = os.WriteFile("/proc/self/comm", []byte("keeper"), 0) // for ps; and "killall worker" does not hit us
	control, status := os.NewFile(controlFD, "control"), os.NewFile(statusFD, "status")
	say := func(r report) { _ = json.NewEncoder(status).Encode(r) } // fails if the worker is gone: nobody to tell
	o, err := readOrder(control)
	if err != nil {
		say(report{Failed: "the order did not arrive: " + err.Error()})
		return 1
	}
	outputs := holdOutputs(o)
	tool, err := launch(o)
	if err != nil {
		r := report{Failed: err.Error()}
		var errno syscall.Errno
		if errors.As(err, &errno) {
			r.Errno = int(errno)
		}
		if o.PIDFile != "" {
			_ = os.Remove(o.PIDFile)
		}
		say(r)
		return 1
	}
	exits := reap(tool)
	asked := make(chan struct{})
	go func() {
		_, err := control.Read(make([]byte, 1)) // a byte: end it; end of file: the worker is gone
		close(asked)
		for err == nil { // the worker may die while the tool ends
			_, err = control.Read(make([]byte, 1))
		}
		for _, f := range outputs {
			go func() { _, _ = io.Copy(io.Discard, f) }()
		}
	}()
	say(report{Started: true, PID: tool})
	say(tend(o, exits, asked))
	return 0
}

// holdOutputs opens the worker's ends of the tool's output pipes once more, if the
// tool is to end gently. Else a tool whose worker is gone, and which says one word
// while it ends in order, would be ended by SIGPIPE instead.
func holdOutputs(o order) (ends []*os.File) {
	for fd := 1; fd <= 2 && o.Gentle > 0; fd++ {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || !slices.Contains(o.Pipes, st.Ino) {
			continue
		}
		f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err == nil { // without it the tool's end is less gentle, no more
			ends = append(ends, f)
		}
	}
	return ends
}

// launch starts the tool of o and returns its number.
func launch(o order) (int, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("adopting orphans: %w", err)
	}
	syscall.Umask(0o077) // what tools leave is private unless they say otherwise
	n := note{Gentle: o.Gentle, Pipes: o.Pipes}
	if err := n.write(o.PIDFile, os.Getpid(), 0); err != nil { // before the tool exists, so that none is unknown
		return 0, err
	}
	attr := &syscall.ProcAttr{
		Dir: o.Dir, Env: o.Env, Files: []uintptr{0, 1, 2},
		// A group of its own: a tool that signals its group does not hit us.
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	}
	if o.Gentle > 0 {
		attr.Sys.Pdeathsig = syscall.SIGTERM
	}
	if c := o.Credential; c != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups, NoSetGroups: os.Geteuid() != 0}
	}
	tool, err := syscall.ForkExec(o.Path, append([]string{filepath.Base(o.Path)}, o.Args...), attr)
	if err != nil {
		return 0, err
	}
	// Let go of the tool's input and outputs: their ends must be the tool's ends.
	if null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		for fd := range 3 {
			_ = unix.Dup3(null, fd, unix.O_CLOEXEC)
		}
	}
	_ = n.write(o.PIDFile, os.Getpid(), tool) // the first note already finds it
	return tool, nil
}

// reap collects all children, adopted ones too, and passes the tool's status on.
func reap(tool int) <-chan syscall.WaitStatus {
	exits := make(chan syscall.WaitStatus, 1)
	go func() {
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, 0, nil)
			switch {
			case err == syscall.EINTR:
			case err != nil: // no child left
				return
			case pid == tool:
				exits <- ws
			}
		}
	}()
	return exits
}

// tend waits for the tool's end or the order to end it, clears the session, and
// says what happened.
func tend(o order, exits <-chan syscall.WaitStatus, asked <-chan struct{}) report {
	self := os.Getpid()
	r := report{Exited: true}
	var ws syscall.WaitStatus
	var left []proc
	select {
	case ws = <-exits:
		left, _ = end(func() ([]proc, error) { return members(self) }, 0, nil)
	case <-asked:
		left, _ = end(func() ([]proc, error) { return kin(self) }, o.Gentle, nil)
		if len(left) == 0 {
			ws = <-exits
		} else {
			ws = syscall.WaitStatus(syscall.SIGKILL) // it was sent; who did not heed it is in Stuck
		}
		// A tool that SIGKILL came too late for has ended by itself.
		r.Ended = o.Gentle > 0 || !ws.Exited()
	}
	if r.Stuck = pids(left); len(r.Stuck) == 0 && o.PIDFile != "" {
		_ = os.Remove(o.PIDFile)
	}
	if ws.Exited() {
		r.Code = ws.ExitStatus()
	} else {
		r.Signal = int(ws.Signal())
	}
	return r
}
