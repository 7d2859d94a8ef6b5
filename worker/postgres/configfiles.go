package postgres

import (
	"bufio"
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
	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/postgres/pgconf"
	"catalog-backup/worker/stage"
)

// maxConfigFile bounds one configuration file; a larger one is something else.
const maxConfigFile = 16 << 20

// maxIncludes bounds how many files an include may lead to.
const maxIncludes = 1000

// outsideConfig finds the configuration files that lie outside the data
// directory: config_file, hba_file, ident_file and all that they include.
func outsideConfig(ctx context.Context, c *pgx.Conn, f *Facts, found *stage.Findings) ([]set.ConfigFile, error) {
	s := &configSearch{data: resolved(f.DataDirectory), found: found, kinds: map[string]string{}}
	for _, setting := range []string{"config_file", "hba_file", "ident_file"} {
		var path string
		if err := c.QueryRow(ctx, "select coalesce(current_setting($1, true), '')", setting).Scan(&path); err != nil {
			return nil, queryError(ctx, setting, err)
		}
		if path != "" {
			s.follow(path, setting)
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
	var list []set.ConfigFile
	for path, kind := range s.kinds {
		if !s.inside(path) {
			list = append(list, set.ConfigFile{Path: path, Kind: kind})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Path < list[j].Path })
	return list, nil
}

// configSearch follows includes through configuration files.
type configSearch struct {
	data  string
	found *stage.Findings
	kinds map[string]string // by path, of files that exist
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

func (s *configSearch) follow(path, kind string) {
	path = filepath.Clean(path)
	if s.kinds[path] != "" || !filepath.IsAbs(path) || len(s.kinds) >= maxIncludes {
		return
	}
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			s.found.Note("configuration file %s is not stored: it is no file that can be read", path)
		}
		return
	}
	s.kinds[path] = kind
	file, err := os.Open(path)
	if err != nil {
		return // Backup says so when it copies
	}
	defer file.Close()
	access := kind == "hba_file" || kind == "ident_file" || kind == "include_access"
	next := "include"
	if access {
		next = "include_access"
	}
	lines := bufio.NewScanner(io.LimitReader(file, maxConfigFile))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		directive, target := includeOf(lines.Text())
		if target == "" {
			if access {
				s.lists(path, lines.Text())
			}
			continue
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		if directive != "include_dir" {
			s.follow(target, next)
			continue
		}
		entries, _ := os.ReadDir(target)
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".conf") && !strings.HasPrefix(e.Name(), ".") {
				s.follow(filepath.Join(target, e.Name()), next)
			}
		}
	}
}

// lists follows the @file lists of users and databases in pg_hba.conf.
func (s *configSearch) lists(path, line string) {
	line, _, _ = strings.Cut(line, "#")
	for _, word := range strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' }) {
		name, ok := strings.CutPrefix(strings.Trim(word, `"`), "@")
		if !ok || name == "" {
			continue
		}
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		s.follow(name, "include_access")
	}
}

// includeOf gives an include directive and its argument, or "".
func includeOf(line string) (directive, target string) {
	l := pgconf.Parse(line)
	if l.Kind == pgconf.Invalid { // pg_hba.conf has quotes of its own
		words := strings.Fields(line)
		if len(words) == 0 {
			return "", ""
		}
		_, rest, _ := strings.Cut(strings.TrimSpace(line), words[0])
		l.Name, l.Value = strings.ToLower(words[0]), strings.Trim(strings.TrimSpace(rest), `"`)
	}
	switch l.Name {
	case "include", "include_if_exists", "include_dir":
		return l.Name, l.Value
	}
	return "", ""
}

// copyConfig copies the configuration files into dir by their absolute paths
// and fills in sizes and checksums.
func copyConfig(ctx context.Context, files []set.ConfigFile, dir string) ([]set.ConfigFile, error) {
	out := []set.ConfigFile{}
	for _, c := range files {
		if stop := ended(ctx, "copy configuration files"); stop != nil {
			return nil, stop
		}
		if _, err := configEntry(c.Path); err != nil {
			return nil, stage.Permanentf("copy configuration file %q: %w: give it a plain path", c.Path, err)
		}
		if c.Kind == "include_access" {
			c.Kind = "include"
		}
		content, err := readLimited(c.Path, maxConfigFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile; the server has not noticed either
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

func readLimited(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(content)) > limit {
		return nil, fmt.Errorf("it is larger than %d bytes", limit)
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
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return stage.Permanentf("%w: the disk is full: make room there", err)
	}
	return err
}
