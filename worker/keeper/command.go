package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Command says what to run and how.
type Command struct {
	Path string   // a path, or a name that is looked up in the worker's PATH
	Args []string // without the program's name; never secrets, everybody can read them
	// Env is the whole environment. nil means PATH, HOME and LANG=C.UTF-8 only;
	// the worker's own variables are never passed on by themselves.
	Env []string
	Dir string // working directory; "" is "/", since others may not enter the worker's
	// Credential is who the tool runs as; nil is the worker's user.
	Credential *Credential
	// Stdin is given to the tool; nil is an empty input. If reading it fails the
	// tool is ended: it never takes a cut input for a whole one. A worker that is
	// killed cannot promise that, the tool may see the end just before it dies.
	Stdin io.Reader
	// Stdout and Stderr take the tool's output; nil drops it. If writing fails the
	// tool is ended. The tail of stderr is always kept for the error.
	Stdout, Stderr io.Writer
	// Gentle is how long the tool and its children may take to end after SIGTERM,
	// before SIGKILL. 0 is SIGKILL at once.
	Gentle time.Duration
	// PIDFile is where the keeper notes its group while it runs, for Leftover and
	// EndLeftover of a successor. Optional; an absolute path.
	PIDFile string
}

// Credential is the user that a tool runs as. Only root can choose one.
type Credential struct {
	UID, GID uint32
	Groups   []uint32 // supplementary groups
}

// LookupCredential finds the user called name with all its groups.
func LookupCredential(name string) (*Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("looking up the user %q: %w; create it or name another", name, err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("looking up the groups of %q: %w", name, err)
	}
	var c Credential
	for _, id := range append([]string{u.Uid, u.Gid}, ids...) {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("looking up the user %q: id %q is no number", name, id)
		}
		c.Groups = append(c.Groups, uint32(n))
	}
	c.UID, c.GID, c.Groups = c.Groups[0], c.Groups[1], c.Groups[2:]
	return &c, nil
}

// order checks the command and makes the keeper's order of it.
func (c Command) order() (order, error) {
	o := order{
		Args: c.Args, Env: c.Env, Dir: c.Dir, Credential: c.Credential, Gentle: max(c.Gentle, 0),
		PIDFile: c.PIDFile,
	}
	path, err := exec.LookPath(c.Path)
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			return o, fmt.Errorf("starting %q: %w; install it or set its path", c.Path, err)
		}
		return o, fmt.Errorf("starting %q: %w", c.Path, err)
	}
	if o.Path, err = filepath.Abs(path); err != nil {
		return o, fmt.Errorf("starting %q: %w", c.Path, err)
	}
	if o.Env == nil {
		o.Env = minimalEnv(c.Credential)
	}
	if o.Dir == "" {
		o.Dir = "/"
	}
	if !filepath.IsAbs(o.Dir) || (o.PIDFile != "" && !filepath.IsAbs(o.PIDFile)) {
		return o, fmt.Errorf("starting %q: directory %q and PID file %q must be absolute paths", c.Path, o.Dir, o.PIDFile)
	}
	for _, s := range append(append([]string{o.Dir}, o.Args...), o.Env...) {
		if strings.IndexByte(s, 0) >= 0 {
			return o, fmt.Errorf("starting %q: an argument, variable or directory contains a zero byte", c.Path)
		}
	}
	if c.Credential != nil && os.Geteuid() != 0 && int64(c.Credential.UID) != int64(os.Geteuid()) {
		return o, fmt.Errorf("starting %q: only root can run it as user %d; run the worker as root or as that user", c.Path, c.Credential.UID)
	}
	return o, nil
}

// minimalEnv is the environment of a tool that asked for none.
func minimalEnv(c *Credential) []string {
	home := os.Getenv("HOME")
	if c != nil {
		home = ""
		if u, err := user.LookupId(strconv.FormatUint(uint64(c.UID), 10)); err == nil {
			home = u.HomeDir
		}
	}
	if home == "" {
		home = "/"
	}
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "LANG=C.UTF-8"}
}
