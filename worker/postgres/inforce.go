package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"catalog-backup/worker/postgres/pgconf"
	"catalog-backup/worker/stage"
)

// ruling are the settings that name the files which rule a server, each with the
// name that the file has in a data directory where nothing else is said.
var ruling = []struct{ setting, name string }{
	{"config_file", "postgresql.conf"}, {"hba_file", "pg_hba.conf"}, {"ident_file", "pg_ident.conf"},
}

// readInForce records which files rule the server: a data directory may hold
// others of the usual names, which it never read.
func (f *Facts) readInForce(ctx context.Context, c *pgx.Conn) error {
	f.ConfigInForce = map[string]string{}
	home := resolved(f.DataDirectory)
	for _, file := range ruling {
		var path string
		if err := c.QueryRow(ctx, "select coalesce(current_setting($1, true), '')", file.setting).Scan(&path); err != nil {
			return queryError(ctx, file.setting, err)
		}
		if path == "" {
			continue
		}
		f.ConfigInForce[file.setting] = filepath.Clean(path)
		// pgBackRest stores what a link in the data directory leads to under the link's name.
		rel, err := filepath.Rel(filepath.Clean(f.DataDirectory), filepath.Clean(path))
		if err != nil || !filepath.IsLocal(rel) {
			rel, err = filepath.Rel(home, resolved(path))
		}
		if err == nil && filepath.IsLocal(rel) {
			f.ConfigInForce[file.setting] = rel
		}
	}
	return nil
}

// inForce tells where the file that ruled the original was: in its data directory
// (rel), or elsewhere. A set that does not say is taken for one of the usual names.
func (r *restoration) inForce(setting, name string) (rel, outside string, recorded bool) {
	path, recorded := r.o.Part.ConfigInForce[setting]
	if !recorded {
		for _, c := range r.o.Part.Config {
			if c.Kind == setting {
				path, recorded = c.Path, true
			}
		}
	}
	switch {
	case filepath.IsAbs(path):
		return "", path, true
	case recorded && filepath.IsLocal(path):
		return path, "", true
	}
	return name, "", false
}

// placeInForce gives the files that ruled the original the names by which the
// restored server finds them, and puts aside what has such a name and ruled
// nothing. With live it gives that up where the settings were outside: none of them
// is here to be left as it was, and PostgreSQL's own defaults would open the server.
func (r *restoration) placeInForce() error {
	r.moved = map[string]string{}
	var unsaid []string
	for _, file := range ruling {
		path := filepath.Join(r.done.DataDir, file.name)
		rel, outside, recorded := r.inForce(file.setting, file.name)
		if !recorded {
			unsaid = append(unsaid, file.name)
		}
		if outside == "" && rel == file.name {
			continue
		}
		if err := r.moveAside(path); err != nil {
			return err
		}
		if outside != "" {
			continue
		}
		if err := r.bringInForce(filepath.Join(r.done.DataDir, rel), path, rel); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(filepath.Join(r.done.DataDir, "postgresql.conf")); err != nil && r.o.Live {
		r.o.Live = false
		rel, outside, _ := r.inForce("config_file", "postgresql.conf")
		r.done.warn("--live cannot leave the settings as they were: the original's postgresql.conf (%s) was not in the data directory that was backed up: this server is quiet, as without --live: put the configuration in place as docs/restoring.md says, and then take the lines of the restore out of postgresql.auto.conf", firstOf(outside, rel))
	}
	if len(unsaid) > 0 && r.o.Live {
		r.done.before("before you start PostgreSQL, see in %s that these are the files which the original read, since the set does not say so, and no others decide who gets in: %s", r.done.DataDir, strings.Join(unsaid, ", "))
	}
	return nil
}

// moveAside takes a file that did not rule the original out of the server's way.
func (r *restoration) moveAside(path string) error {
	aside := path + ".other"
	err := os.Rename(path, aside)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("restore PostgreSQL: put %s aside: %w", path, err)
	}
	r.moved[path] = aside
	r.done.note("the original did not read the %s in its data directory: it is %s now", filepath.Base(path), filepath.Base(aside))
	return nil
}

// bringInForce gives the file from the place rel in the data directory its usual
// name. What postgresql.conf includes by relative paths is found from where it was.
func (r *restoration) bringInForce(from, path, rel string) error {
	st, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
		r.done.warn("%s, which the original read as its %s, is not in the backup: it is as none", rel, filepath.Base(path))
		return nil
	}
	if err == nil && filepath.Base(path) == "postgresql.conf" && filepath.Dir(rel) != "." {
		err = writeFile(path, []byte("# Made by a restore: what the original read.\n"+pgconf.Quote("include", rel)+"\n"), 0o600)
	} else if err == nil {
		err = os.Rename(from, path)
		r.moved[from] = path
	}
	if err != nil {
		return fmt.Errorf("restore PostgreSQL: put %s in force: %w", from, err)
	}
	r.done.note("the original read %s as its %s, and so does the restored server", rel, filepath.Base(path))
	return nil
}

// elsewhere finds lines of pg_hba.conf that take names from other files.
var elsewhere = regexp.MustCompile(`(?im)^\s*include|^[^#\n]*@`)

// originalAccess is the original's file for log-in from outside its data directory,
// for a live server; "" where it is not in the set or needs others beside it.
func (r *restoration) originalAccess(setting, name string) string {
	_, outside, _ := r.inForce(setting, name)
	if outside == "" || r.o.ConfigFrom == "" {
		return ""
	}
	content, err := readLimited(filepath.Join(r.o.ConfigFrom, outside), maxConfigFile)
	if err != nil || elsewhere.Match(content) {
		return ""
	}
	return string(content)
}

// access makes the restored server's own account the only one that gets in, with
// no file or service asked. With live the original's rules stay.
func (r *restoration) access() error {
	if r.o.Live {
		return r.liveAccess()
	}
	files := map[string]string{
		"pg_hba.conf":   "# Made by a restore: the socket is for the server's own account only.\nlocal  all  all  trust\nlocal  replication  all  trust\n",
		"pg_ident.conf": "# Made by a restore: empty.\n",
	}
	for _, name := range []string{"pg_hba.conf", "pg_ident.conf"} {
		path := filepath.Join(r.done.DataDir, name)
		err := os.Rename(path, path+".original")
		switch {
		case err == nil:
			r.done.note("%s is %s.original now: the restored server lets in its own account, by its socket", name, name)
		case errors.Is(err, fs.ErrNotExist):
			r.done.note("%s was not in the data directory: a minimal one was made", name)
		default:
			return fmt.Errorf("restore PostgreSQL: put %s aside: %w", path, err)
		}
		if err := writeFile(path, []byte(files[name]), 0o600); err != nil {
			return stage.Permanentf("restore PostgreSQL: write %s: %w", path, noSpace(err))
		}
	}
	return nil
}

// peerMap is the name of the map in pg_ident.conf by which a live server without
// the original's rules lets in its own account.
const peerMap = "catalog_backup_restore"

// liveAccess leaves the original's rules, and where they are not here lets in the
// account that runs the server and nobody else: the socket of a live server is open
// to everybody on the host.
func (r *restoration) liveAccess() error {
	closed := false
	for _, file := range ruling[1:] {
		path := filepath.Join(r.done.DataDir, file.name)
		content, err := readLimited(path, maxConfigFile)
		missing := errors.Is(err, fs.ErrNotExist)
		if err != nil && !missing {
			return fmt.Errorf("restore PostgreSQL: %w", err)
		}
		text := string(content)
		if missing {
			text = r.originalAccess(file.setting, file.name)
		}
		switch {
		case text != "" && missing:
			r.done.note("%s was not in the data directory: the original one was put there", file.name)
		case missing && file.name == "pg_hba.conf":
			closed = true
			r.done.warn("the original's pg_hba.conf was not in its data directory, and stands for itself only with other files or is not in the set: a minimal one was made, that lets in the account %s by the socket and nobody else", r.owner.name)
			text = "# Made by a restore.\nlocal  all  " + accessWord(r.superuser()) + "  peer  map=" + peerMap + "\n"
		case missing:
			r.done.note("%s was not in the data directory: a minimal one was made", file.name)
			text = "# Made by a restore.\n"
		}
		if closed && file.name == "pg_ident.conf" {
			text = strings.TrimSuffix(text, "\n") + "\n" + peerMap + "  " + accessWord(r.owner.name) + "  " + accessWord(r.superuser()) + "\n"
		}
		if text == string(content) && !missing {
			continue
		}
		if err := writeFile(path, []byte(text), 0o600); err != nil {
			return stage.Permanentf("restore PostgreSQL: write %s: %w", path, noSpace(err))
		}
	}
	return nil
}

// accessWord quotes a name for pg_hba.conf and pg_ident.conf. One that no line can
// hold becomes a name that nobody has.
func accessWord(name string) string {
	if strings.ContainsFunc(name, func(c rune) bool { return c < ' ' }) {
		name = ""
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}
