// Package lab starts real servers for tests and for the demo: PostgreSQL, Redis,
// kfake and Apache Kafka, each with a throwaway directory of its own, on a unix
// socket or a free loopback port. No product binary links it.
//
// Every server comes in two forms: Start…(options) for a program, and a function
// that takes a testing.TB, fails the test when the server cannot be had (never
// skips it) and ends the server with the test. A server dies with the process that
// started it, however that ends; what such a process left on disk is removed by the
// next one.
package lab

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// maxSocketPath is the longest path of a unix socket we use. The kernel's
	// limit is 107 bytes (unix(7)), and servers add names of their own to it.
	maxSocketPath = 90
	// startLimit is how long a server may take until it answers.
	startLimit = 60 * time.Second
	// stopLimit is how long a server may take to end when it is asked to.
	stopLimit = 30 * time.Second
	pollEvery = 10 * time.Millisecond

	rootPrefix = "cb-lab-"
	// settled is the age after which a directory whose lock is free is known to
	// have lost its owner, rather than to be one that is just being made.
	settled = time.Minute
)

// root is the directory of one server.
type root struct {
	dir  string
	lock *os.File // held while the owner lives; nil when the directory was given to us
}

// newRoot makes a throwaway directory that every user may enter (PostgreSQL runs as
// another one) and whose path is short enough for a unix socket. A given directory
// is used as it is and not removed later.
func newRoot(given string) (*root, error) {
	if given != "" {
		dir, err := filepath.Abs(given)
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("lab: make %s: %w", dir, err)
		}
		dir, err = filepath.EvalSymlinks(dir) // as /proc names it
		return &root{dir: dir}, err
	}
	base, err := filepath.EvalSymlinks(os.TempDir())
	if err != nil || len(base) > maxSocketPath/2 || !enterable(base) {
		base = "/tmp"
	}
	sweep(base)
	dir, err := os.MkdirTemp(base, rootPrefix)
	if err != nil {
		return nil, fmt.Errorf("lab: make a throwaway directory: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lab: lock %s: %w", dir, err)
	}
	return &root{dir: dir, lock: lock}, nil
}

// remove deletes the directory if newRoot made it.
func (r *root) remove() error {
	if r.lock == nil {
		return nil
	}
	err := endStrays(r.dir, "")
	return errors.Join(err, os.RemoveAll(r.dir), r.lock.Close())
}

// sweep removes the throwaway directories of processes that were killed.
func sweep(base string) {
	dirs, _ := filepath.Glob(filepath.Join(base, rootPrefix+"*"))
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < settled {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(dir)
		}
		_ = lock.Close()
	}
}

// enterable tells whether other users may pass through dir and all its parents.
func enterable(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode()&0o001 == 0 {
			return false
		}
		if dir == "/" || dir == "." {
			return true
		}
		dir = filepath.Dir(dir)
	}
}

// PostgresUser gives the credential that PostgreSQL's programs must run under: nil
// for an ordinary user, the system's user `postgres` for root, whom PostgreSQL
// refuses.
func PostgresUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("lab: PostgreSQL cannot run as root and there is no user postgres: run .ci/install: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	cred := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	ids, _ := u.GroupIds()
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			cred.Groups = append(cred.Groups, uint32(n))
		}
	}
	return cred, nil
}

// mkdirFor makes a private directory that belongs to cred's user (nil: to us).
func mkdirFor(dir string, mode os.FileMode, cred *syscall.Credential) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	if err := os.Chmod(dir, mode); err != nil {
		return err
	}
	if cred == nil {
		return nil
	}
	return os.Chown(dir, int(cred.Uid), int(cred.Gid))
}

// checkout finds the top of the checkout: the folder above the current one that
// holds this module's go.mod.
func checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		b, err := os.ReadFile(filepath.Join(at, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module catalog-backup\n") {
			return at, nil
		}
		if at == "/" {
			return "", fmt.Errorf("lab: %s is not inside a checkout of catalog-backup: go there first", dir)
		}
	}
}

// poll calls done every few milliseconds until it is true or limit is over, and
// tells whether it was.
func poll(limit time.Duration, done func() bool) bool {
	deadline := time.Now().Add(limit)
	for !done() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pollEvery)
	}
	return true
}

// closer is what the testing wrappers need of a server.
type closer interface {
	Close() error
	LogTail() string
}

// bind ends s with the test, and shows its log when the test failed.
func bind(t testing.TB, name string, s closer) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", name, s.LogTail())
		}
		if err := s.Close(); err != nil {
			t.Errorf("lab: end %s: %v", name, err)
		}
	})
}
