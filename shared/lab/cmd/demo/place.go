package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"catalog-backup/shared/lab"
)

const (
	defaultBase   = "/var/tmp"
	defaultPrefix = "catalog-backup-demo-"
	// markName is there in every folder that a demo made, and locked while it runs.
	markName = ".catalog-backup-demo"
	keptName = "kept" // there when the demo was told to leave everything running
	// maxDir keeps the paths of unix sockets below it short enough (unix(7): 107 bytes).
	maxDir = 60
	// spaceNeeded is what a demo writes at most.
	spaceNeeded = 2 << 30
)

// place is the folder of one demo.
type place struct {
	dir  string
	lock *os.File
}

// newPlace makes the folder: the given one, which must be new, empty or an earlier
// demo's; else one under /var/tmp, after those of earlier demos were removed.
func newPlace(given string) (*place, error) {
	dir := given
	if given == "" {
		sweep()
		dir = filepath.Join(defaultBase, defaultPrefix+strconv.Itoa(os.Getpid()))
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := fit(dir); err != nil {
		return nil, err
	}
	if err := clear(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make %s: %w; choose another by DEMO_DIR=…", dir, err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		return nil, err
	}
	// The servers speak of it by its real name.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	lock, err := hold(filepath.Join(dir, markName), os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("another demo runs in %s; choose another folder by DEMO_DIR=…", dir)
	}
	return &place{dir, lock}, nil
}

func (p *place) path(names ...string) string {
	return filepath.Join(append([]string{p.dir}, names...)...)
}

func (p *place) unlock() { _ = p.lock.Close() }

// hold takes the lock of a demo's folder.
func hold(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// fit refuses a folder in which the servers could not work.
func fit(dir string) error {
	if len(dir) > maxDir {
		return fmt.Errorf("%s is too long a path: those of the servers' sockets would go over the limit; choose one of at most %d bytes by DEMO_DIR=…", dir, maxDir)
	}
	if strings.ContainsAny(dir, "\n'\\\"") {
		return fmt.Errorf("%q holds quotes, backslashes or line breaks; choose a plainer one by DEMO_DIR=…", dir)
	}
	there := dir // the nearest folder that exists
	for {
		info, err := os.Stat(there)
		if err == nil && !info.IsDir() {
			return fmt.Errorf("%s is no folder; choose another by DEMO_DIR=…", there)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("look at %s: %w; choose another by DEMO_DIR=…", there, err)
		}
		there = filepath.Dir(there)
	}
	cred, err := lab.PostgresUser()
	if err != nil {
		return err
	}
	if cred != nil {
		cmd := exec.Command("/usr/bin/test", "-x", there)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("the user postgres, as whom PostgreSQL runs, cannot enter %s: chmod o+x it and the folders above it, or choose another place, e.g. DEMO_DIR=/var/tmp/demo", there)
		}
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(there, &fs); err != nil {
		return err
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < spaceNeeded {
		return fmt.Errorf("%s has %d MiB free, the demo needs %d: free some, or choose another place by DEMO_DIR=…", there, free>>20, spaceNeeded>>20)
	}
	return nil
}

// clear empties a folder that an earlier demo made and that nothing uses any more.
func clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || (err == nil && len(entries) == 0) {
		return nil
	}
	if err != nil {
		return err
	}
	lock, err := hold(filepath.Join(dir, markName), 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s is not empty and no demo made it: name one that is empty or does not exist by DEMO_DIR=…", dir)
	case err != nil:
		return fmt.Errorf("another demo runs in %s; choose another folder by DEMO_DIR=…", dir)
	}
	defer func() { _ = lock.Close() }()
	if _, err := os.Stat(filepath.Join(dir, keptName)); err == nil {
		return fmt.Errorf("a demo was left running in %s: end it by .ci/demo stop %[1]s", dir)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove an earlier demo: %w", err)
		}
	}
	return nil
}

// sweep removes what earlier demos left in the default place to be looked at.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(defaultBase, defaultPrefix+"*"))
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			continue
		}
		if clear(dir) == nil {
			_ = os.Remove(dir)
		}
	}
}
