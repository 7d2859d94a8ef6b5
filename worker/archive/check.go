package archive

import (
	"fmt"
	"hash/maphash"
	"strings"
)

// Checker finds, without writing anything, entries that an Extractor would refuse:
// names that lead out, devices, links to outside, and entries that arrive through or
// onto a symbolic link of the same archive, or onto a directory. A Writer has one, so
// that no archive is ever made that cannot be unpacked. It remembers the names of
// symbolic links, and eight bytes of each directory.
type Checker struct {
	links map[string]bool // symbolic links, unless replaced later
	seed  maphash.Seed
	dirs  map[uint64]struct{} // hashes of directories, those included that only lead to an entry
}

// NewChecker checks one archive, or several unpacked in the same place.
func NewChecker() *Checker {
	return &Checker{links: map[string]bool{}, seed: maphash.MakeSeed(), dirs: map[uint64]struct{}{}}
}

// ThroughLink is what a Checker says of an entry below a symbolic link of the archive.
type ThroughLink struct{ Entry, Link string }

func (e *ThroughLink) Error() string {
	return fmt.Sprintf("entry %s lies below the symbolic link %s", show(e.Entry), show(e.Link))
}

// Check is given every entry in order.
func (c *Checker) Check(h *Header) error {
	if err := checkEntry(h); err != nil {
		return err
	}
	if link, ok := c.below(h.Name); ok {
		return &ThroughLink{h.Name, link}
	}
	if h.Kind == Dir && c.links[h.Name] {
		return fmt.Errorf("entry %s is a directory in the place of a symbolic link", show(h.Name))
	}
	if h.Kind == HardLink {
		if link, ok := c.below(h.Link + "/"); ok {
			return fmt.Errorf("entry %s is a hard link to or below the symbolic link %s", show(h.Name), show(link))
		}
	}
	if _, ok := c.dirs[maphash.String(c.seed, h.Name)]; ok && h.Kind != Dir {
		return fmt.Errorf("entry %s is a file or link in the place of a directory", show(h.Name))
	}
	c.enter(h)
	if h.Kind == Symlink {
		c.links[h.Name] = true
	} else {
		delete(c.links, h.Name)
	}
	return nil
}

// enter remembers the directories that there are by now.
func (c *Checker) enter(h *Header) {
	dir := h.Name
	if h.Kind != Dir {
		dir, _ = splitPath(dir)
	}
	for ; dir != ""; dir, _ = splitPath(dir) {
		id := maphash.String(c.seed, dir)
		if _, known := c.dirs[id]; known {
			return // so are those above
		}
		c.dirs[id] = struct{}{}
	}
}

// below finds a symbolic link above name.
func (c *Checker) below(name string) (string, bool) {
	if len(c.links) == 0 {
		return "", false
	}
	for i := 0; i < len(name); i++ {
		if name[i] == '/' && c.links[name[:i]] {
			return name[:i], true
		}
	}
	return "", false
}

// checkEntry refuses an entry that is wrong whatever else the archive holds.
func checkEntry(h *Header) error {
	if err := CheckEntryName(h.Name); err != nil {
		return err
	}
	switch h.Kind {
	case Regular, Dir:
	case Symlink:
		if h.Link == "" || len(h.Link) > maxName {
			return fmt.Errorf("entry %s is a symbolic link without a target", show(h.Name))
		}
	case HardLink:
		if err := CheckEntryName(h.Link); err != nil {
			return fmt.Errorf("entry %s: link target: %w", show(h.Name), err)
		}
		if h.Link == h.Name || strings.HasSuffix(h.Link, "/") {
			return fmt.Errorf("entry %s is a hard link to itself or a directory", show(h.Name))
		}
	case CharDev, BlockDev, FIFO:
		return fmt.Errorf("entry %s is a device or pipe, which this program never stores", show(h.Name))
	default:
		return fmt.Errorf("entry %s is of the unknown kind %q", show(h.Name), byte(h.Kind))
	}
	return nil
}
