package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/jackc/pgx/v5"

	"catalog-backup/shared/set"
	"catalog-backup/worker/postgres/pgconf"
	"catalog-backup/worker/stage"
)

// maxConfigFile bounds one configuration file; a larger one is something else.
const maxConfigFile = 16 << 20

// maxIncludes bounds how many files an include may lead to.
const maxIncludes = 1000

// outsideConfig finds the configuration files that lie outside the data
// directory: config_file, hba_file, ident_file and all that they include. It refuses
// those that could not be copied, and notes those that are not.
func outsideConfig(ctx context.Context, c *pgx.Conn, f *Facts, found *stage.Findings) ([]set.ConfigFile, error) {
	s := &configSearch{data: resolved(f.DataDirectory), found: found, kinds: map[string]string{}, missing: map[string]bool{}}
	for _, setting := range []string{"config_file", "hba_file", "ident_file"} {
		path, err := settingOf(ctx, c, setting)
		if err != nil {
			return nil, err
		}
		if path == "" {
			continue
		}
		s.follow(path, setting)
		if setting == "config_file" && !s.inside(path) {
			s.starts(filepath.Dir(path))
		}
	}
	// What the server itself knows of; a role without the right has only the parsing.
	rows, err := c.Query(ctx, "select distinct sourcefile from pg_settings where sourcefile is not null")
	if err != nil {
		return nil, queryError(ctx, "its configuration files", err)
	}
	files, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, queryError(ctx, "its configuration files", err)
	}
	for _, path := range files {
		s.follow(path, "include")
	}
	if err := s.secrets(ctx, c); err != nil {
		return nil, err
	}
	var list []set.ConfigFile
	for path, kind := range s.kinds {
		if kind == unstored || s.inside(path) {
			continue
		}
		if err := mayCopy(path); err != nil {
			return nil, err
		}
		list = append(list, set.ConfigFile{Path: path, Kind: kind})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Path < list[j].Path })
	return list, nil
}

func settingOf(ctx context.Context, c *pgx.Conn, setting string) (string, error) {
	var value string
	if err := c.QueryRow(ctx, "select coalesce(current_setting($1, true), '')", setting).Scan(&value); err != nil {
		return "", queryError(ctx, setting, err)
	}
	return value, nil
}

// startFiles lie beside Debian's postgresql.conf and say how pg_ctlcluster starts the
// server (postgresql-common).
var startFiles = []string{"environment", "pg_ctl.conf", "start.conf"}

func (s *configSearch) starts(dir string) {
	if _, err := os.Stat(filepath.Join(dir, "start.conf")); err != nil {
		return // not Debian's: /etc/environment, say, is the system's
	}
	for _, name := range startFiles {
		s.follow(filepath.Join(dir, name), "start")
	}
}

// unstored is the kind of a file that was looked at and stays out.
const unstored = "unstored"

// mayCopy finds out before the work what would end the run after it.
func mayCopy(path string) error {
	if _, err := configEntry(path); err != nil {
		return stage.Permanentf("copy configuration file %q: %w: give it a plain path", path, err)
	}
	file, err := os.Open(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return stage.Permanentf("copy configuration file %s: %w: let the worker read it", path, err)
	}
	_ = file.Close()
	return nil
}

// configSearch follows includes through configuration files.
type configSearch struct {
	data    string
	found   *stage.Findings
	kinds   map[string]string // by path, of files that exist
	missing map[string]bool   // that were noted
	full    bool
}

func resolved(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return filepath.Clean(path)
}

func (s *configSearch) inside(path string) bool {
	p := resolved(path)
	return p == s.data || strings.HasPrefix(p, s.data+"/")
}

// secretFiles are settings that name files of keys and certificates.
var secretFiles = []string{"ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_file", "ssl_crl_dir", "ssl_dh_params_file", "krb_server_keyfile"}

// secrets notes keys and certificates outside the data directory. They are not
// stored: they belong to the host and its name, are made anew there, and a private
// key has no business in an archive.
func (s *configSearch) secrets(ctx context.Context, c *pgx.Conn) error {
	var named []string
	for _, setting := range secretFiles {
		path, err := settingOf(ctx, c, setting)
		if err != nil {
			return err
		}
		path = strings.TrimPrefix(path, "FILE:") // of a keytab
		if path == "" {
			continue
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(s.data, path)
		}
		// pgBackRest stores what a link in the data directory leads to.
		linked := strings.HasPrefix(filepath.Clean(path), s.data+"/")
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) && !linked && !s.inside(path) {
			named = append(named, setting+" "+path)
		}
	}
	if len(named) > 0 {
		s.found.Note("keys and certificates outside the data directory are not stored; keep them on their own, or make new ones: %s", strings.Join(named, ", "))
	}
	return nil
}

// named follows what a file names, and notes it if it is not there.
func (s *configSearch) named(target, kind, from string) {
	if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
		if !s.missing[target] && len(s.missing) < maxIncludes {
			s.missing[target] = true
			s.found.Note("configuration file %s names %s, which is not there", from, target)
		}
		return
	}
	s.follow(target, kind)
}

func (s *configSearch) follow(path, kind string) {
	path = filepath.Clean(path)
	if s.kinds[path] != "" || !filepath.IsAbs(path) {
		return
	}
	if len(s.kinds) >= maxIncludes {
		if !s.full {
			s.found.Note("there are more than %d configuration files: the others are not stored", maxIncludes)
		}
		s.full = true
		return
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	s.kinds[path] = kind
	if err != nil || !st.Mode().IsRegular() {
		s.kinds[path] = unstored
		s.found.Note("configuration file %s is not stored: it is no file that can be read", path)
		return
	}
	content, err := readLimited(path, maxConfigFile)
	if errors.Is(err, errLarge) && !s.inside(path) {
		s.kinds[path] = unstored
		s.found.Note("configuration file %s is not stored: %v", path, err)
	}
	if err != nil || kind == "start" {
		return
	}
	if kind == "hba_file" || kind == "ident_file" || kind == "include_access" {
		s.access(path, string(content))
		return
	}
	for _, line := range pgconf.Lines(string(content)) {
		switch l := pgconf.Parse(line); l.Name {
		case "include", "include_if_exists", "include_dir":
			s.include(path, l.Name, l.Value, "include")
		}
	}
}

// include follows one directive.
func (s *configSearch) include(from, directive, target, kind string) {
	if target == "" {
		return
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(from), target)
	}
	switch directive {
	case "include":
		s.named(target, kind, from)
	case "include_if_exists":
		s.follow(target, kind)
	case "include_dir":
		entries, err := os.ReadDir(target)
		if err != nil {
			s.found.Note("configuration file %s includes the directory %s, of which nothing is stored: %v", from, target, err)
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".conf") && !strings.HasPrefix(e.Name(), ".") {
				s.follow(filepath.Join(target, e.Name()), kind)
			}
		}
	}
}

// access follows the include directives (from 16 on) and the @file lists of
// pg_hba.conf, of pg_ident.conf and of such lists.
func (s *configSearch) access(path, content string) {
	for _, line := range pgconf.AccessLines(content) {
		tokens := pgconf.AccessTokens(line)
		if len(tokens) > 1 && strings.HasPrefix(tokens[0].Text, "include") {
			s.include(path, tokens[0].Text, tokens[1].Text, "include_access")
		}
		for _, t := range tokens {
			if name, ok := strings.CutPrefix(t.Text, "@"); ok && !t.Quoted {
				s.include(path, "include", name, "include_access")
			}
		}
	}
}

// copyConfig copies the configuration files into dir by their absolute paths
// and fills in sizes and checksums.
func copyConfig(ctx context.Context, files []set.ConfigFile, dir string, found *stage.Findings) ([]set.ConfigFile, error) {
	out := []set.ConfigFile{}
	for _, c := range files {
		if stop := ended(ctx, "copy configuration files"); stop != nil {
			return nil, stop
		}
		if c.Kind == "include_access" {
			c.Kind = "include"
		}
		content, err := readLimited(c.Path, maxConfigFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile; the server has not noticed either
		}
		if errors.Is(err, errLarge) { // it grew meanwhile
			found.Note("configuration file %s is not stored: %v", c.Path, err)
			continue
		}
		if err != nil {
			return nil, stage.Permanentf("copy configuration file %s: %w: let the worker read it", c.Path, err)
		}
		if err := writeFile(filepath.Join(dir, c.Path), content, 0o600); err != nil {
			return nil, fmt.Errorf("copy configuration file %s: %w", c.Path, noSpace(err))
		}
		sum := sha256.Sum256(content)
		c.Size, c.SHA256 = int64(len(content)), hex.EncodeToString(sum[:])
		out = append(out, c)
	}
	return out, nil
}

var errLarge = errors.New("it is too large")

func readLimited(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(content)) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", errLarge, limit)
	}
	return content, err
}

// writeFile writes a file by a temporary name, with its directories, synced.
func writeFile(path string, content []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return set.SyncDir(dir)
}

// noSpace makes a full disk a permanent error with its remedy.
func noSpace(err error) error {
	if stage.IsFull(err) {
		return stage.Permanentf("%w: the disk is full: make room there", err)
	}
	return err
}
