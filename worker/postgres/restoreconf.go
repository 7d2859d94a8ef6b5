package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"catalog-backup/worker/postgres/pgconf"
)

// retired marks the lines that a restore put out of force.
const retired = "# catalog-backup restore: "

// configure makes the restored cluster start by itself, within Target, and act
// for nobody.
func (r *restoration) configure(ctx context.Context) error {
	data := r.done.DataDir
	// With a tablespace_map the server would link tablespaces to their old places;
	// pgBackRest made the links already.
	for _, name := range []string{"postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "recovery.conf", "tablespace_map"} {
		if err := os.RemoveAll(filepath.Join(data, name)); err != nil {
			return fmt.Errorf("restore PostgreSQL: %w", err)
		}
	}
	if err := r.cutLinks(); err != nil {
		return err
	}
	if err := r.placeInForce(); err != nil {
		return err
	}
	r.control = r.readControl(ctx)
	if err := r.socket(); err != nil {
		return err
	}
	if err := r.access(); err != nil {
		return err
	}
	if err := r.rewriteConfig(); err != nil {
		return err
	}
	r.chooseLibraries()
	if err := r.writeBlock(); err != nil {
		return err
	}
	if err := r.trial(ctx); err != nil {
		return err
	}
	if err := r.writeTakeOver(); err != nil {
		return err
	}
	r.sayRetired()
	return r.compareCollations(ctx)
}

// cutLinks removes what is neither file nor directory from the restored tree: the
// server follows a link wherever it leads, and pgBackRest makes none but those of
// the tablespaces, which lead into Target.
func (r *restoration) cutLinks() error {
	spaces := filepath.Join(r.done.DataDir, "pg_tblspc")
	return filepath.WalkDir(r.o.Target, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("restore PostgreSQL: look for links: %w", err)
		}
		if e.IsDir() || e.Type().IsRegular() {
			return nil
		}
		to, _ := os.Readlink(path)
		if filepath.Dir(path) == spaces && r.manifest.tablespaces[e.Name()] != "" && to == filepath.Join(r.o.Target, "tablespaces", e.Name()) {
			return nil
		}
		r.done.note("%s is no file of the database and leads elsewhere (%q): it was removed", path, to)
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("restore PostgreSQL: remove a link: %w", err)
		}
		return nil
	})
}

// rewriteConfig puts out of force what may not stay in postgresql.conf, in
// postgresql.auto.conf and in what they include.
func (r *restoration) rewriteConfig() error {
	r.seen = map[string]bool{}
	for _, name := range []string{"postgresql.conf", "postgresql.auto.conf"} {
		path := filepath.Join(r.done.DataDir, name)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			if err := writeFile(path, []byte("# Made by a restore: there was none in the data directory.\n"), 0o600); err != nil {
				return fmt.Errorf("restore PostgreSQL: write %s: %w", path, err)
			}
			if name == "postgresql.conf" {
				r.done.note("%s was not in the data directory: a minimal one was made", name)
			}
		}
		if err := r.rewrite(path, 0); err != nil {
			return err
		}
	}
	return nil
}

// maxDepth of includes is the server's own, CONF_FILE_MAX_DEPTH.
const maxDepth = 10

// rewrite goes through one file. A line that stays is read by the server as it was
// read here.
func (r *restoration) rewrite(path string, depth int) error {
	r.seen[path] = true
	content, err := readLimited(path, maxConfigFile)
	if err != nil {
		aside := path + ".original"
		if err := errors.Join(os.Rename(path, aside), writeFile(path, nil, 0o600)); err != nil {
			return fmt.Errorf("restore PostgreSQL: put %s aside: %w", path, err)
		}
		r.done.note("%s cannot be read as a configuration (%v): it is %s now", path, err, aside)
		return nil
	}
	lines := pgconf.Lines(string(content))
	for i, line := range lines {
		l := pgconf.Parse(line)
		keep := true
		switch {
		case l.Kind == pgconf.Invalid:
			l.Name, keep = "not readable for the server", false
		case l.Kind == pgconf.Blank:
			continue
		case l.Name == "include", l.Name == "include_if_exists", l.Name == "include_dir":
			if to := r.moved[includedPath(path, l.Value)]; to != "" && l.Name != "include_dir" {
				near, err := filepath.Rel(filepath.Dir(path), to)
				if err != nil {
					return fmt.Errorf("restore PostgreSQL: %w", err)
				}
				l.Value, line = near, pgconf.Quote(l.Name, near)
				lines[i] = line
			}
			if keep, err = r.include(path, l, depth); err != nil {
				return err
			}
		default:
			keep = r.mayStay(l.Name, l.Value)
			r.values[l.Name] = l.Value
		}
		if !keep {
			lines[i] = retired + strings.ReplaceAll(line, "\x00", `\0`)
			r.retire(path, i+1, l.Name)
		}
	}
	if err := writeFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		return fmt.Errorf("restore PostgreSQL: rewrite %s: %w", path, err)
	}
	return nil
}

// mayStay decides about one setting.
func (r *restoration) mayStay(name, value string) bool {
	if r.refused[name] {
		return false
	}
	if !r.o.Live {
		return allowed[name] || ofQuietLibrary(name)
	}
	switch name {
	case "log_directory", "log_filename", "stats_temp_directory":
		return filepath.IsLocal(value)
	}
	return !never[name]
}

// include follows a directive that leads to files in the data directory which were
// not read before; all others are put out of force: the server would not start, or
// would read what nobody looked through.
func (r *restoration) include(from string, l pgconf.Line, depth int) (bool, error) {
	target := includedPath(from, l.Value)
	if strings.TrimSpace(l.Value) == "" || depth >= maxDepth || !r.inData(target) {
		return false, nil
	}
	files := []string{target}
	if l.Name == "include_dir" {
		entries, err := os.ReadDir(target)
		if err != nil {
			return false, nil
		}
		files = nil
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".conf") && !strings.HasPrefix(e.Name(), ".") && !e.IsDir() {
				files = append(files, filepath.Join(target, e.Name()))
			}
		}
	} else if st, err := os.Lstat(target); err != nil || !st.Mode().IsRegular() {
		return false, nil
	}
	if slices.ContainsFunc(files, func(f string) bool { return r.seen[f] }) {
		return false, nil
	}
	for _, f := range files {
		if err := r.rewrite(f, depth+1); err != nil {
			return false, err
		}
	}
	return true, nil
}

// includedPath is where an include in the file from leads to.
func includedPath(from, value string) string {
	if filepath.IsAbs(value) {
		return filepath.Clean(value)
	}
	return filepath.Join(filepath.Dir(from), value)
}

// inData tells whether a path lies in the data directory, by its name and in fact,
// and is none of the database's own files, which are not to be rewritten.
func (r *restoration) inData(path string) bool {
	data := r.done.DataDir
	real, err := filepath.EvalSymlinks(path)
	home, err2 := filepath.EvalSymlinks(data)
	rel, err3 := filepath.Rel(data, path)
	first, _, _ := strings.Cut(strings.ToLower(rel), "/")
	own := first == "base" || first == "global" || strings.HasPrefix(first, "pg_") || strings.HasPrefix(first, "backup_label") || strings.HasPrefix(first, "tablespace_map")
	return err == nil && err2 == nil && err3 == nil && !own && filepath.IsLocal(rel) && real == filepath.Join(home, rel)
}

// retire remembers a line for the notes. Values are not said: there are passwords
// among them.
func (r *restoration) retire(path string, line int, name string) {
	rel, err := filepath.Rel(r.done.DataDir, path)
	if err != nil {
		rel = path
	}
	if !slices.Contains(r.files, rel) {
		r.files = append(r.files, rel)
	}
	r.retiredIn[rel] = append(r.retiredIn[rel], fmt.Sprintf("%s (line %d)", name, line))
}

func (r *restoration) sayRetired() {
	for _, file := range r.files {
		r.done.note("%s: put out of force where they stand, behind %q: %s", file, strings.TrimSpace(retired), strings.Join(r.retiredIn[file], ", "))
	}
}
