package archive

import (
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"catalog-backup/worker/stage"
)

// Finish makes the links that had to wait, sets the directories' attributes, the
// deepest first, and brings all to the disk.
func (x *Extractor) Finish() (stage.Findings, error) {
	defer x.Close()
	for _, h := range x.links {
		if err := x.waited(h); err != nil {
			return stage.Findings{}, fmt.Errorf("restore hard link %s: %w", show(h.Name), explain(err))
		}
	}
	x.target.cut(0)
	last := make(map[string]*Header, len(x.dirs))
	for _, h := range x.dirs {
		last[h.Name] = h
	}
	x.describe(last)
	depth := func(h *Header) int { return strings.Count(h.Name, "/") + min(len(h.Name), 1) }
	sort.SliceStable(x.dirs, func(i, j int) bool { return depth(x.dirs[i]) > depth(x.dirs[j]) })
	for _, h := range x.dirs {
		if last[h.Name] != h {
			continue // a later entry of the name counts
		}
		if err := x.finishDir(h); err != nil {
			return stage.Findings{}, fmt.Errorf("restore directory %s: %w", show(h.Name), explain(err))
		}
	}
	x.way.cut(0)
	if err := unix.Syncfs(int(x.root.Fd())); err != nil {
		return stage.Findings{}, fmt.Errorf("restore: sync the target: %w", explain(err))
	}
	return x.said.findings(), nil
}

// waited makes a hard link whose first name came after it.
func (x *Extractor) waited(h *Header) error {
	parent, base := splitPath(h.Name)
	dir, err := x.way.dir(parent)
	if err != nil {
		return err
	}
	done, err := x.link(int(dir.Fd()), base, h)
	if err == nil && !done {
		err = stage.Permanentf("its first name %s is not in the archive", show(h.Link))
	}
	return err
}

// describe gives the directories that no entry describes what Unnamed says.
func (x *Extractor) describe(described map[string]*Header) {
	if x.o.Unnamed == nil {
		return
	}
	for _, name := range append(x.made, "") {
		if described[name] != nil {
			continue
		}
		h := x.o.Unnamed(name)
		h.Name, h.Kind = name, Dir
		described[name] = h
		x.dirs = append(x.dirs, h)
		if name != "" {
			x.said.note("directories that the set does not describe, given the mode and owner that they have on this host, or 0755", name)
		}
	}
}

func (x *Extractor) finishDir(h *Header) error {
	parent, base := splitPath(h.Name)
	if h.Name == "" {
		base = "."
	}
	dir, err := x.way.dir(parent)
	if err != nil {
		return err
	}
	f, err := openDirAt(int(dir.Fd()), base)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := x.finishFile(f, h); err != nil || h.ModTime.IsZero() {
		return err
	}
	return x.setTime(int(dir.Fd()), base, h)
}

// behindLinks is a copy of h with its names where the symbolic links on the way lead,
// as the source's kernel followed them. The root stands for /, so that nothing leads out.
func (x *Extractor) behindLinks(h *Header) (*Header, error) {
	c := *h
	var err error
	if c.Name, err = x.behind(h.Name, h.Kind == Dir); err != nil {
		return nil, err
	}
	if c.Name != h.Name {
		x.said.warn("backed up through a symbolic link, which no tar does, put where that leads", h.Name+" in "+c.Name)
	}
	if h.Kind == HardLink {
		if c.Link, err = x.behind(h.Link, false); err != nil {
			return nil, err
		}
	}
	if h.Kind == Symlink {
		x.thru[c.Name] = h.Link
	} else {
		delete(x.thru, c.Name)
	}
	return &c, nil
}

// behind follows the links above name; with through, the one of that name too.
func (x *Extractor) behind(name string, through bool) (string, error) {
	if len(x.thru) == 0 {
		return name, nil
	}
	at, rest, followed := "", strings.Split(name, "/"), 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at, _ = splitPath(at)
			continue
		}
		next := strings.TrimPrefix(at+"/"+part, "/")
		target, isLink := x.thru[next]
		if !isLink || (len(rest) == 0 && !through) {
			at = next
			continue
		}
		if followed++; followed > mostLinks {
			return "", fmt.Errorf("entry %s lies below symbolic links that lead in a circle", show(name))
		}
		if strings.HasPrefix(target, "/") {
			at = ""
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	if at == "" {
		return "", fmt.Errorf("entry %s lies where the whole target is", show(name))
	}
	return at, nil
}
