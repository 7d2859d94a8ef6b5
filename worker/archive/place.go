package archive

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// place is set.Place with names of any bytes.
type place struct {
	configured string
	real       string // no symbolic link is on the way
	way        []step
}

// step is set.PlaceStep.
type step struct{ path, target string }

// mostLinks is how many symbolic links one path may lead through, as path_resolution(7) has it.
const mostLinks = 40

// ResolvePlaces finds out where the configured paths lead. It is done once, when the
// run begins: a link that changes later does not change what is stored. Its errors
// are permanent.
func ResolvePlaces(paths []string) ([]set.Place, error) {
	var out []set.Place
	for _, path := range paths {
		p, err := resolve(path)
		if err != nil {
			return nil, err
		}
		x := set.Place{Configured: path}
		x.Resolved, x.ResolvedBytes = text(p.real)
		for _, l := range p.way {
			var y set.PlaceStep
			y.Path, y.PathBytes = text(l.path)
			y.Target, y.TargetBytes = text(l.target)
			x.Way = append(x.Way, y)
		}
		out = append(out, x)
	}
	return out, nil
}

// placeOf is the reverse of what ResolvePlaces makes of a place.
func placeOf(x set.Place) (place, error) {
	p := place{configured: x.Configured}
	var err error
	if p.real, err = bytesOf(x.Resolved, x.ResolvedBytes); err != nil {
		return p, err
	}
	for _, y := range x.Way {
		var l step
		if l.path, err = bytesOf(y.Path, y.PathBytes); err != nil {
			return p, err
		}
		if l.target, err = bytesOf(y.Target, y.TargetBytes); err != nil {
			return p, err
		}
		p.way = append(p.way, l)
	}
	return p, nil
}

// resolve checks a configured path and follows it as the kernel does.
func resolve(path string) (place, error) {
	if !filepath.IsAbs(path) {
		return place{}, stage.Permanentf("files.paths: %s is not an absolute path: write it from / on", show(path))
	}
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	p := place{configured: path, real: "/"}
	if err == nil {
		err = p.follow(path)
	}
	if err != nil && gone(err) && err != unix.ELOOP {
		return p, stage.Permanentf("files.paths: %s does not exist: create it or take it out of the configuration", show(path))
	}
	if err != nil {
		return p, stage.Permanentf("files.paths: %s cannot be looked at: %w: let the worker read it or take it out of the configuration", show(path), err)
	}
	return p, nil
}

// follow walks path, name by name. A ".." leads up from where a link has led to, which
// is not what cleaning the path as a text gives.
func (p *place) follow(path string) error {
	rest, followed := strings.Split(path, "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			p.way = append(p.way, step{path: p.real})
			p.real = filepath.Dir(p.real)
			continue
		}
		next := strings.TrimSuffix(p.real, "/") + "/" + name
		st, err := statAt(unix.AT_FDCWD, next)
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			p.real = next
			continue
		}
		if followed++; followed > mostLinks {
			return unix.ELOOP
		}
		target, err := readlinkAt(unix.AT_FDCWD, next)
		if err != nil {
			return err
		}
		p.way = append(p.way, step{next, target})
		if strings.HasPrefix(target, "/") {
			p.real = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return nil
}

// parents lists the directories above path, from / on.
func parents(path string) []string {
	var out []string
	for i := range path {
		if path[i] == '/' && path != "/" {
			out = append(out, path[:max(i, 1)])
		}
	}
	return out
}

// upTo opens the directories on the way to what lies at path, none of them through a
// symbolic link, tells visit about each, from / on, and gives the one that path lies in
// and path's name there ("." for /).
func upTo(path string, visit func(path string, dir *os.File) error) (*os.File, string, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	at, way, name := unix.AT_FDCWD, "/", "/"
	var dir *os.File
	for {
		fd, err := unix.Openat(at, name, flags, 0)
		if dir != nil {
			dir.Close()
		}
		if err != nil {
			return nil, "", &os.PathError{Op: "open", Path: way, Err: err}
		}
		dir, at = os.NewFile(uintptr(fd), way), fd
		if path == "/" {
			return dir, ".", nil
		}
		if visit != nil {
			if err := visit(way, dir); err != nil {
				dir.Close()
				return nil, "", err
			}
		}
		rest := strings.TrimPrefix(path[len(way):], "/")
		var deeper bool
		if name, _, deeper = strings.Cut(rest, "/"); !deeper {
			return dir, name, nil
		}
		way = strings.TrimSuffix(way, "/") + "/" + name
	}
}
