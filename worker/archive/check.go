package archive

import (
	"fmt"
	"strings"
)

// Checker finds, without writing anything, entries that an Extractor would refuse:
// names that lead out, devices, links to outside, and files that lie below a
// symbolic link or a file of the same archive. It remembers the names of symbolic
// links and files that are parents of nothing good, not contents.
type Checker struct {
	links map[string]bool // symbolic links, unless replaced later
}

// NewChecker checks one archive, or several unpacked in the same place.
func NewChecker() *Checker { return &Checker{links: map[string]bool{}} }

// Check is given every entry in order.
func (c *Checker) Check(h *Header) error {
	if err := checkEntry(h); err != nil {
		return err
	}
	if len(c.links) > 0 {
		for i := range h.Name {
			if h.Name[i] == '/' && c.links[h.Name[:i]] {
				return fmt.Errorf("entry %s lies below the symbolic link %s", show(h.Name), show(h.Name[:i]))
			}
		}
		if h.Kind == HardLink && c.links[h.Link] {
			return fmt.Errorf("entry %s is a hard link to the symbolic link %s", show(h.Name), show(h.Link))
		}
	}
	if h.Kind == Symlink {
		c.links[h.Name] = true
	} else {
		delete(c.links, h.Name)
	}
	return nil
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
