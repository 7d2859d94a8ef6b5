package archive

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"catalog-backup/worker/stage"
)

// special notes what has no content to store.
func (a *adder) special(n *node) error {
	if a.strict {
		return fmt.Errorf("%s is neither a file nor a directory", show(n.path))
	}
	if n.is(unix.S_IFCHR) || n.is(unix.S_IFBLK) {
		a.said.note("devices left out", n.path)
	} else {
		a.said.note("sockets and pipes left out", n.path)
	}
	return nil
}

// notSeen deals with what could not be looked at, or a directory not be listed.
func (a *adder) notSeen(ctx context.Context, n *node) error {
	switch {
	case a.strict:
		return fmt.Errorf("read %s: %w", show(n.path), n.err)
	case n.err == errMoved:
		a.said.warn("directories moved or removed while they were read, what was left in them is not stored", n.path)
		return nil
	case n.err == errLinkGone:
		a.said.warn("led to a configured path as a symbolic link when the run began, and is none any more: the path does not lead there after a restore", n.path)
		return nil
	case n.err == errOtherKind:
		return fmt.Errorf("files: %s: %w", show(n.path), n.err)
	case n.err == errNotAgain:
		a.said.warn("directories that changed while the backup ran and could not be listed once more: what was moved into them is not stored", n.path)
		return nil
	case gone(n.err) && n.st.Mode != 0:
		return a.gone(n)
	case gone(n.err):
		a.said.note("vanished before they could be read", n.path)
		return nil
	}
	if err := a.cannotRead(n, n.err); err != nil {
		return err
	}
	if n.is(unix.S_IFDIR) {
		return a.dir(ctx, n, unreadable)
	}
	return a.notStored(n, unreadable)
}

// cannotRead fails, or warns where that is allowed. What the machine lacks for the
// moment is no fault of the file, and a retry may mend it; so it may a stale handle.
func (a *adder) cannotRead(n *node, err error) error {
	if errors.Is(err, unix.ESTALE) && (a.strict || !a.allowUnreadable) {
		return fmt.Errorf("files: cannot read %s: %w: the file server has lost it; is it mounted well?", show(n.path), err)
	}
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("files: cannot read %s: %w", show(n.path), err)
	}
	if a.strict || !a.allowUnreadable {
		return stage.Permanentf("files: cannot read %s: %w: give the worker the right to read it, exclude it, or set files.allow_unreadable", show(n.path), err)
	}
	a.said.warn("cannot be read, not or not wholly stored", n.path+" ("+err.Error()+")")
	return nil
}

// gone notes and records a thing that vanished. What was torn when it was read before
// stays that.
func (a *adder) gone(n *node) error {
	if a.prior != nil {
		a.said.warn("changed while they were read and were removed before they could be read again, stored as read", n.path)
		return a.record(n, *a.prior)
	}
	a.said.note("vanished while the backup ran", n.path)
	return a.notStored(n, vanished)
}

// notStored records a file of which nothing is stored now: what the first reading
// stored counts, if there was one.
func (a *adder) notStored(n *node, what string) error {
	switch {
	case a.prior != nil:
		return a.record(n, *a.prior)
	case n.replaces:
	case n.st.Mode == 0 || n.is(unix.S_IFREG):
		return a.record(n, a.file(n, kindFile, what))
	}
	return nil
}

// notOpened deals with a file that could not be opened or read at the start.
func (a *adder) notOpened(n *node, err error) error {
	switch {
	case a.strict:
		return fmt.Errorf("read %s: %w", show(n.path), err)
	case err == errReplaced && a.last:
		a.said.warn("replaced by something else in both reads, not stored", n.path)
		return a.notStored(n, changed)
	case err == errReplaced, (gone(err) || errors.Is(err, unix.ESTALE)) && !a.last: // it may be back by then
		a.again = append(a.again, secondRead{n: keep(n)})
		return nil
	case gone(err):
		return a.gone(n)
	}
	if err := a.cannotRead(n, err); err != nil {
		return err
	}
	return a.notStored(n, unreadable)
}
