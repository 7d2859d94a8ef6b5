// Package redisowner tells which worker keeps the embedded Redis, for people to whom
// that Redis does not answer. Its owner signs the lock file that it holds.
//
// The lock alone says who owns; what is written is a hint, which may be missing (an
// earlier version, a full disk) or left by a worker that is gone. It is checked when it
// is read, since people are told to end the process.
package redisowner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// size is the length in bytes of what is written, always: over what an earlier owner
// wrote no block has to be found, so that a full disk hinders only the first one.
const size = 1024

// note is the line in the lock file.
type note struct {
	PID     int    `json:"pid"`
	Host    string `json:"host"`
	Version string `json:"version"`
	// What tells the process from a later one with its number.
	Boot  string `json:"boot"`  // /proc/sys/kernel/random/boot_id
	Space string `json:"space"` // its PID namespace, as /proc/self/ns/pid gives it
	Start uint64 `json:"start"` // its start time, clock ticks after the boot
}

var word = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._:+~-]{0,127}$`)

// Sign writes this process into the lock file, which it has locked.
func Sign(lock *os.File, version string) error {
	n := note{PID: os.Getpid(), Version: version}
	n.Host, _ = os.Hostname()
	n.Boot, n.Space = here()
	p, err := look(n.PID)
	if err != nil {
		return fmt.Errorf("signing %s: %w", lock.Name(), err)
	}
	n.Start = p.start
	line, err := json.Marshal(n)
	if err != nil || len(line) >= size {
		return fmt.Errorf("signing %s: %d bytes are too long (%w)", lock.Name(), len(line), err)
	}
	text := string(line) + strings.Repeat(" ", size-1-len(line)) + "\n"
	if _, err := lock.WriteAt([]byte(text), 0); err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	return nil
}

// here is the boot and the PID namespace of this process, "" where /proc does not say.
func here() (boot, space string) {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	space, _ = os.Readlink("/proc/self/ns/pid")
	return strings.TrimSpace(string(id)), space
}

// standing is what is known of the process that signed.
type standing int

const (
	unknown   standing = iota // nobody signed, or what is there makes no sense
	gone                      // it has ended
	elsewhere                 // on another host, or in another container
	lives
	stopped // by SIGSTOP, or by a debugger
)

// read reads the signature at path and looks at its process. The error is one of the
// way to the file.
func read(path string) (note, standing, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return note{}, unknown, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return note{}, unknown, err
	}
	text, err := io.ReadAll(io.LimitReader(f, size))
	if err != nil {
		return note{}, unknown, err
	}
	var n note
	if json.Unmarshal(text, &n) != nil || n.PID <= 1 || n.PID > 1<<22 || !word.MatchString(n.Host) || !word.MatchString(n.Version) {
		return note{}, unknown, nil
	}
	return n, n.standing(info.Sys().(*syscall.Stat_t).Uid), nil
}

// standing looks at the process, which must belong to uid as the file does.
func (n note) standing(uid uint32) standing {
	host, _ := os.Hostname()
	boot, space := here()
	switch {
	case n.Boot != boot && n.Host == host:
		return gone // a lock does not outlive its boot
	case n.Boot != boot, n.Space != space:
		return elsewhere
	}
	p, err := look(n.PID)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ESRCH):
		return gone
	case err != nil:
		return unknown
	case p.start != n.Start, p.uid != uid, p.state == "Z", p.state == "X":
		return gone
	case p.state == "T", p.state == "t":
		return stopped
	}
	return lives
}

// process is what /proc tells of one.
type process struct {
	state string // a letter, see proc(5)
	start uint64 // clock ticks after the boot
	uid   uint32
}

func look(pid int) (process, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	info, err := os.Stat(dir)
	if err != nil {
		return process{}, err
	}
	text, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return process{}, err
	}
	// The name, in brackets, may hold anything: state is field 3, the start time 22.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return process{}, fmt.Errorf("%s/stat has %d fields after the name", dir, len(fields))
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return process{state: fields[0], start: start, uid: info.Sys().(*syscall.Stat_t).Uid}, err
}
