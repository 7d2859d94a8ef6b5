package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// endGrace is what the keeper gets beyond Gentle before the worker ends the
	// session itself.
	endGrace = 2 * time.Second
	// intakeLimit bounds the wait for a caller's writer when the context has ended.
	intakeLimit = 5 * time.Second
)

// Process is a running tool.
type Process struct {
	order   order
	pid     int           // the tool's
	keeper  *exec.Cmd     // its number is the session's id
	control *os.File      // write end; open as long as the worker lives
	status  *os.File      // read end
	stdin   *os.File      // write end, nil if there is none to feed
	intakes []*intake     // stdout, stderr
	stderr  tail          // always kept
	failed  chan error    // a stream failed: end the tool
	started chan struct{} // closed when the tool runs
	hurry   bool          // the time to be gentle is over
	done    chan struct{} // closed when everything is over; err is set then
	err     error
}

// Start starts c and returns when it runs. The caller must call Wait. When ctx
// ends the tool is ended.
func Start(ctx context.Context, c Command) (*Process, error) {
	if !hooked {
		return nil, errors.New("keeper.Hook was not called: it must be the first call of main and of TestMain")
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s was not started: %w", filepath.Base(c.Path), context.Cause(ctx))
	}
	o, err := c.order()
	if err != nil {
		return nil, err
	}
	p := &Process{order: o, failed: make(chan error, 3), started: make(chan struct{}), done: make(chan struct{})}
	if err := p.open(c); err != nil {
		return nil, fmt.Errorf("starting %q: %w", c.Path, err)
	}
	go p.supervise(ctx)
	select {
	case <-p.started:
		return p, nil
	case <-p.done:
		select {
		case <-p.started: // started and over already: Wait tells
			return p, nil
		default:
			return nil, p.err
		}
	}
}

// open makes the pipes, starts the keeper and gives it its order.
func (p *Process) open(c Command) (err error) {
	var theirs []*os.File // ends that only the keeper may hold
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			p.closeOurs()
		}
	}()
	pipe := func() (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
		}
		return r, w
	}
	controlRead, control := pipe()
	status, statusWrite := pipe()
	if err != nil {
		return err
	}
	p.control, p.status, theirs = control, status, []*os.File{controlRead, statusWrite}

	k := &exec.Cmd{
		// Not os.Executable: the file may have been replaced since we started.
		Path: "/proc/self/exe", Args: []string{"keeper", verb, filepath.Base(p.order.Path)}, Env: []string{}, Dir: "/",
		ExtraFiles:  []*os.File{controlRead, statusWrite},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	switch in := c.Stdin.(type) {
	case nil:
	case *os.File:
		k.Stdin = in
	default:
		read, write := pipe()
		if err != nil {
			return err
		}
		p.stdin, k.Stdin, theirs = write, read, append(theirs, read)
	}
	outputs, err := p.openOutputs(c, k)
	theirs = append(theirs, outputs...)
	if err != nil {
		return err
	}
	if err := k.Start(); err != nil {
		return fmt.Errorf("starting its keeper: %w", err)
	}
	p.keeper = k
	for _, in := range p.intakes {
		go in.copy(func(err error) { p.fail(fmt.Errorf("taking its output: %w", err)) })
	}
	if p.stdin != nil {
		go feed(c.Stdin, p.stdin, p.fail)
	}
	return nil
}

// openOutputs connects the keeper's stdout and stderr, and returns the keeper's ends.
func (p *Process) openOutputs(c Command, k *exec.Cmd) (theirs []*os.File, err error) {
	stdout, stderr := c.Stdout, c.Stderr
	if same(stdout, stderr) {
		one := &locked{to: stdout}
		stdout, stderr = one, one
	}
	if f, ok := c.Stdout.(*os.File); ok {
		k.Stdout = f
	} else if stdout != nil {
		in, write, err := newIntake(stdout)
		if err != nil {
			return theirs, err
		}
		p.intakes, theirs, k.Stdout = append(p.intakes, in), append(theirs, write), write
	}
	kept := io.Writer(&p.stderr)
	if stderr != nil {
		kept = io.MultiWriter(&p.stderr, stderr)
	}
	in, write, err := newIntake(kept)
	if err != nil {
		return theirs, err
	}
	p.intakes, theirs, k.Stderr = append(p.intakes, in), append(theirs, write), write
	for _, f := range theirs {
		info, err := f.Stat()
		if err != nil {
			return theirs, err
		}
		p.order.Pipes = append(p.order.Pipes, info.Sys().(*syscall.Stat_t).Ino)
	}
	return theirs, nil
}

func (p *Process) fail(err error) {
	select {
	case p.failed <- err:
	default: // told already
	}
}

func (p *Process) closeOurs() {
	for _, f := range []*os.File{p.control, p.status, p.stdin} {
		if f != nil {
			f.Close()
		}
	}
	if p.keeper == nil { // else the intakes close theirs
		for _, in := range p.intakes {
			in.from.Close()
		}
	}
}

// supervise sees the process through to its end.
func (p *Process) supervise(ctx context.Context) {
	defer close(p.done)
	defer p.closeOurs()
	over := make(chan report, 1) // the keeper's last word; empty if it died without one
	go func() { over <- p.listen() }()
	ordered := make(chan struct{})
	go func() { // a full pipe must not hold us up; a keeper that died is seen by listen
		defer close(ordered)
		if err := writeOrder(p.control, p.order); err != nil {
			p.fail(fmt.Errorf("giving the keeper its order: %w", err))
		}
	}()
	var last report
	var cause error
	select {
	case last = <-over:
		select {
		case cause = <-p.failed:
		default:
		}
	case <-ctx.Done():
		cause = context.Cause(ctx)
		last = p.stop(ordered, over)
	case cause = <-p.failed:
		last = p.stop(ordered, over)
	}
	stuck := p.sweep()
	streamErr := p.finish(ctx)
	if len(stuck) > 0 {
		p.err = fmt.Errorf("%s: processes %v outlive SIGKILL (hung file system?); see to them by hand", p.name(), stuck)
		return
	}
	p.err = p.result(last, cause, streamErr)
}

func (p *Process) name() string { return filepath.Base(p.order.Path) }

// listen reads the keeper's reports until it is gone.
func (p *Process) listen() report {
	var last report
	for d := json.NewDecoder(p.status); ; {
		var r report
		if err := d.Decode(&r); err != nil {
			return last
		}
		if r.Started {
			p.pid = r.PID
			close(p.started)
			continue
		}
		last = r
	}
}

// stop has the keeper end the tool, or kills the keeper if that takes too long.
func (p *Process) stop(ordered <-chan struct{}, over <-chan report) report {
	limit := time.NewTimer(p.order.Gentle + endGrace)
	defer limit.Stop()
	select {
	case <-ordered: // the word to end comes after the order
		_, _ = p.control.Write([]byte{1}) // fits, or the keeper is gone
	case last := <-over:
		return last
	case <-limit.C:
		limit.Reset(0)
	}
	select {
	case last := <-over:
		return last
	case <-limit.C: // it was stopped, or a process hangs in the kernel
		p.hurry = true
		_ = p.keeper.Process.Kill()
		return <-over
	}
}

// sweep ends what a killed keeper left of the session, and collects the keeper. The
// keeper stays a zombie meanwhile, so that the session's number is not given away.
func (p *Process) sweep() []int {
	id := p.keeper.Process.Pid
	for unix.Waitid(unix.P_PID, id, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	left, err := members(id)
	if err != nil || len(left) > 0 {
		gentle := p.order.Gentle
		if p.hurry {
			gentle = 0
		}
		left, _ = end(func() ([]proc, error) { return members(id) }, gentle, nil)
	}
	_ = p.keeper.Wait()
	if len(left) == 0 && p.order.PIDFile != "" {
		_ = os.Remove(p.order.PIDFile) // the keeper has done it, unless it was killed
	}
	return pids(left)
}

// finish waits for the output that is still in the pipes.
func (p *Process) finish(ctx context.Context) error {
	for _, in := range p.intakes {
		in.finish()
	}
	cut := make(chan struct{}) // closed when a writer that hangs is no longer waited for
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(intakeLimit, func() { close(cut) }) })
	defer stop()
	for _, in := range p.intakes {
		select {
		case <-in.done:
			if in.err != nil {
				return fmt.Errorf("taking its output: %w", in.err)
			}
		case <-cut:
			return errors.New("taking its output: the reader hangs")
		}
	}
	return nil
}

// result makes an error of what happened.
func (p *Process) result(last report, cause, streamErr error) error {
	exit := &ExitError{Path: p.order.Path, Code: last.Code, Signal: syscall.Signal(last.Signal), Stderr: p.stderr.text(p.order.Env)}
	if last.Signal != 0 {
		exit.Code = -1
	}
	if cause == nil {
		cause = streamErr
	}
	switch {
	case last.Failed != "" && cause == nil:
		return p.startError(last)
	case cause != nil && last.Exited && !last.Ended && streamErr == nil && last.Code == 0 && last.Signal == 0:
		return nil // it was good before the end reached it
	case cause != nil && last.Exited && (last.Code != 0 || last.Signal != 0):
		return fmt.Errorf("%s was ended: %w (%w)", p.name(), cause, exit)
	case cause != nil:
		return fmt.Errorf("%s was ended: %w", p.name(), cause)
	case !last.Exited:
		return fmt.Errorf("the keeper of %s was killed, so its processes were ended; try again", p.name())
	case last.Code != 0 || last.Signal != 0:
		return exit
	}
	return nil
}

// startError tells why the tool could not be started, and what to do.
func (p *Process) startError(r report) error {
	remedy := ""
	switch syscall.Errno(r.Errno) {
	case syscall.EPERM:
		remedy = "; run the worker as root or as the user that the tool needs"
	case syscall.EACCES, syscall.ENOENT:
		remedy = "; check that the program, its directory " + p.order.Dir + " and that of its PID file exist and can be used"
	}
	if r.Errno != 0 {
		return fmt.Errorf("starting %q: %w%s", p.order.Path, errnoError{syscall.Errno(r.Errno), r.Failed}, remedy)
	}
	return fmt.Errorf("starting %q: %s%s", p.order.Path, r.Failed, remedy)
}

// errnoError is text that unwraps to the number it came from.
type errnoError struct {
	errno syscall.Errno
	text  string
}

func (e errnoError) Error() string { return e.text }
func (e errnoError) Unwrap() error { return e.errno }

// PID is the tool's number; its keeper's is KeeperPID.
func (p *Process) PID() int { return p.pid }

// KeeperPID is the keeper's number and the id of the tool's session.
func (p *Process) KeeperPID() int { return p.keeper.Process.Pid }

// Done is closed when Wait would return at once.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns when the tool and every process of its session are gone and all
// output is taken. It is nil after exit code 0, an *ExitError after another, and
// wraps context.Cause if the context's end ended the tool. It may be called from
// several goroutines. It does not wait for a Stdin that hangs.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Run starts c and waits for it.
func Run(ctx context.Context, c Command) error {
	p, err := Start(ctx, c)
	if err != nil {
		return err
	}
	return p.Wait()
}
