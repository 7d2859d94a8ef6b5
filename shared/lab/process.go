package lab

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// launcher runs functions on one OS thread that lives as long as the process:
// Pdeathsig follows the thread that forked, not the process (prctl(2)).
var launcher = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// process is a running server. Its output goes to a log file.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the process has ended
	err  error         // how it ended, once done is closed
}

// spawn starts cmd so that it gets the signal death when this process ends, in
// whatever way, with its output appended to the file log.
func spawn(cmd *exec.Cmd, log string, death syscall.Signal) (*process, error) {
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }() // the child has its own copy
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = death
	cmd.SysProcAttr.Setpgid = true // a ^C in the terminal is for us alone
	started := make(chan error)
	launcher() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("lab: start %s: %w", cmd.Path, err)
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// running tells whether the process has not ended.
func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// ready waits until probe is nil. It fails with the end of the log when the process
// ends first or takes too long.
func (p *process) ready(probe func() error) error {
	var last error
	ok := poll(startLimit, func() bool {
		if !p.running() {
			return true
		}
		last = probe()
		return last == nil
	})
	name := filepath.Base(p.cmd.Path)
	if !p.running() {
		return fmt.Errorf("lab: %s ended while starting (%v); its log ends with:\n%s", name, p.err, tail(p.log))
	}
	if !ok {
		return fmt.Errorf("lab: %s was not ready within %s: %w; its log ends with:\n%s", name, startLimit, last, tail(p.log))
	}
	return nil
}

// end sends sig and waits until the process and all its descendants are gone; what
// is left after stopLimit is killed, which is an error.
func (p *process) end(sig syscall.Signal) error {
	if !p.running() {
		return nil
	}
	below := descendants(p.pid())
	_ = p.cmd.Process.Signal(sig)
	if sig != syscall.SIGKILL {
		_ = p.cmd.Process.Signal(syscall.SIGCONT) // a frozen process would not see it
	} else {
		// An orphan notices late, or never while it computes (a PostgreSQL backend).
		<-p.done
		kill(below)
	}
	gone := func() bool { return !p.running() && !anyAlive(below) }
	if poll(stopLimit, gone) {
		return nil
	}
	_ = p.cmd.Process.Kill()
	kill(below)
	poll(stopLimit, gone)
	return fmt.Errorf("lab: %s did not end within %s of %s and was killed", filepath.Base(p.cmd.Path), stopLimit, sig)
}

// signal sends sig to the process itself.
func (p *process) signal(sig syscall.Signal) error {
	if !p.running() {
		return errors.New("lab: the server does not run")
	}
	return p.cmd.Process.Signal(sig)
}

// member is a process known by number and start time, so that a recycled number is
// not taken for it.
type member struct {
	pid   int
	start string
}

// alive tells whether the process still runs; a zombie does not.
func (m member) alive() bool {
	_, state, start, err := stat(m.pid)
	return err == nil && start == m.start && state != "Z" && state != "X"
}

// kill ends those that still run.
func kill(ms []member) {
	for _, m := range ms {
		if m.alive() {
			_ = syscall.Kill(m.pid, syscall.SIGKILL)
		}
	}
}

func anyAlive(ms []member) bool {
	for _, m := range ms {
		if m.alive() {
			return true
		}
	}
	return false
}

// stat reads parent, state and start time of a process (proc(5): fields 4, 3, 22).
func stat(pid int) (parent int, state, start string, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, "", "", err
	}
	// The name in parentheses may hold anything, so count from its end.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return 0, "", "", fmt.Errorf("lab: /proc/%d/stat is too short", pid)
	}
	parent, err = strconv.Atoi(f[1])
	return parent, f[0], f[19], err
}

// descendants lists the processes below pid.
func descendants(pid int) []member {
	entries, _ := os.ReadDir("/proc")
	children := map[int][]member{}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if parent, _, start, err := stat(n); err == nil {
			children[parent] = append(children[parent], member{n, start})
		}
	}
	var all []member
	for todo := []int{pid}; len(todo) > 0; todo = todo[1:] {
		for _, m := range children[todo[0]] {
			all = append(all, m)
			todo = append(todo, m.pid)
		}
	}
	return all
}

// endStrays kills what still works in dir or below: children of a server that was
// killed from outside. With exe, only those that run this program: a directory that
// was given to us may be a person's working directory. Zombies have none.
func endStrays(dir, exe string) error {
	left := func() (pids []int) {
		links, _ := filepath.Glob("/proc/[0-9]*/cwd")
		for _, link := range links {
			at, err := os.Readlink(link)
			if err != nil || at != dir && !strings.HasPrefix(at, dir+"/") {
				continue
			}
			if at, err := os.Readlink(filepath.Join(filepath.Dir(link), "exe")); exe != "" && (err != nil || at != exe) {
				continue
			}
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	gone := poll(stopLimit, func() bool {
		pids := left()
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return len(pids) == 0
	})
	if !gone {
		return fmt.Errorf("lab: processes %v in %s cannot be killed", left(), dir)
	}
	return nil
}

// tail gives the last part of a file.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	const most = 3000
	if info, err := f.Stat(); err == nil && info.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd)
	}
	b, _ := io.ReadAll(f)
	return strings.TrimSpace(string(b))
}

// freePort gives a loopback port that nobody listens on, out of a range below the one
// that the system takes for outgoing connections (ip_local_port_range(7), from 32768):
// in there a stranger may take the port while its server is down, and a client that
// calls a dead server again and again ends up talking to itself.
func freePort() (int, error) {
	const first, last = 10240, 32000
	var err error
	for range 100 {
		port := first + rand.IntN(last-first)
		if _, taken := ports.LoadOrStore(port, true); taken {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("lab: no free loopback port: %w", err)
}

// ports are those that freePort gave out.
var ports sync.Map

// program finds an executable in PATH or in the folders that an ordinary user's PATH
// lacks.
func program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode()&0o111 != 0 {
			return filepath.Join(dir, name), nil
		}
	}
	return "", fmt.Errorf("lab: %s is not installed: run .ci/install", name)
}

// environment is what servers and their tools get: nothing of ours, above all no
// PG… and PGBACKREST_… variables.
func environment() []string {
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/nonexistent", "LC_ALL=C.UTF-8", "TZ=UTC"}
}

// Running tells whether a process runs; a zombie does not.
func Running(pid int) bool {
	_, state, _, err := stat(pid)
	return err == nil && state != "Z" && state != "X"
}
