package archive

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"catalog-backup/worker/stage"
)

// AddTree stores a directory that the backup itself has made (the pgBackRest
// repository, configuration files): its files, directories and symbolic links, each as
// prefix and the path below root. first are files (paths below root) to be written
// before all others, in this order. class says for each file whether it is
// compressed already; nil: find out. Nobody else writes there, so whatever changes
// or cannot be read is an error. root itself gets no entry.
func AddTree(ctx context.Context, w *Writer, root, prefix string, first []string, class func(rel string) Class, p stage.Progress) error {
	root = filepath.Clean(root)
	prefix = strings.TrimSuffix(prefix, "/") + "/"
	a := newAdder(w, p)
	a.strict = true
	a.entry = func(n *node) string { return prefix + n.rel }
	if class != nil {
		a.class = func(n *node) Class { return class(n.rel) }
	}
	f, err := os.OpenFile(root, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("store directory %s: %w", root, err)
	}
	at := newDirHandle(f)
	defer at.release()
	st, err := fstat(f)
	if err != nil {
		return fmt.Errorf("store directory %s: %w", root, err)
	}
	t := &treeAdder{adder: a, root: root, at: at, written: map[string]bool{"": true}}
	if err := t.first(ctx, first); err != nil {
		return fmt.Errorf("store directory %s: %w", root, err)
	}
	walking := &walk{done: map[string]bool{}}
	err = readAhead(ctx, 4, func(ctx context.Context, emit func(*node) error) error {
		walking.emit = emit
		return walking.tree(ctx, &node{path: root, root: root, at: at, base: ".", st: st})
	}, func(it *item) error {
		if t.written[it.rel] {
			return nil
		}
		return a.add(ctx, &it.node, it.small)
	})
	if err != nil {
		return fmt.Errorf("store directory %s: %w", root, err)
	}
	return nil
}

type treeAdder struct {
	*adder
	root    string
	at      *dirHandle
	written map[string]bool
}

// first writes the files that come first, each after the directories it lies in.
func (t *treeAdder) first(ctx context.Context, list []string) error {
	dup, err := openDirAt(t.at.fd(), ".")
	if err != nil {
		return err
	}
	way := &beneath{root: dup}
	defer way.close()
	for _, rel := range list {
		if err := CheckEntryName(rel); err != nil {
			return err
		}
		for i := range rel {
			if rel[i] == '/' {
				if err := t.one(ctx, way, rel[:i]); err != nil {
					return err
				}
			}
		}
		if err := t.one(ctx, way, rel); err != nil {
			return err
		}
	}
	return nil
}

func (t *treeAdder) one(ctx context.Context, way *beneath, rel string) error {
	if t.written[rel] {
		return nil
	}
	t.written[rel] = true
	dir, base := splitPath(rel)
	at, err := way.dir(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", show(rel), err)
	}
	n := &node{path: filepath.Join(t.root, rel), root: t.root, rel: rel, at: newDirHandle(at), base: base}
	if n.st, err = statAt(int(at.Fd()), base); err != nil {
		return fmt.Errorf("%s: %w", show(rel), err)
	}
	return t.add(ctx, n, nil)
}
