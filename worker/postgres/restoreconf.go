package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"catalog-backup/worker/stage"
)

// retired marks the lines that a restore put out of force.
const retired = "# catalog-backup restore: "

// dropped are settings that a restored server must not take over: they lead out
// of its directory, or make it act for the original.
var dropped = map[string]bool{
	"data_directory": true, "config_file": true, "hba_file": true, "ident_file": true, "external_pid_file": true,
	"archive_mode": true, "archive_command": true, "archive_library": true, "archive_cleanup_command": true,
	"restore_command": true, "recovery_end_command": true, "recovery_target": true, "recovery_target_action": true,
	"recovery_target_inclusive": true, "recovery_target_lsn": true, "recovery_target_name": true, "recovery_target_time": true,
	"recovery_target_timeline": true, "recovery_target_xid": true, "primary_conninfo": true, "primary_slot_name": true,
	"standby_mode": true, "trigger_file": true, "promote_trigger_file": true, "recovery_min_apply_delay": true,
	"synchronous_standby_names": true, "sync_replication_slots": true, "synchronized_standby_slots": true, "standby_slot_names": true,
	"listen_addresses": true, "unix_socket_directories": true, "unix_socket_group": true, "unix_socket_permissions": true,
	"ssl": true, "ssl_cert_file": true, "ssl_key_file": true, "ssl_ca_file": true, "ssl_crl_file": true, "ssl_crl_dir": true,
	"ssl_dh_params_file": true, "ssl_passphrase_command": true, "krb_server_keyfile": true, "bonjour": true,
}

// placed are settings that may stay where they name a place inside the data directory.
var placed = map[string]bool{"log_directory": true, "stats_temp_directory": true}

// libraries are settings that list what the server loads; a missing one would
// keep it from starting or from taking sessions.
var libraries = map[string]bool{"shared_preload_libraries": true, "session_preload_libraries": true, "local_preload_libraries": true}

// configure makes the restored cluster start by itself, and only within Target.
func (r *restoration) configure(context.Context) error {
	r.bin = serverBin(r.o.Part.ServerVersionNum / 10000)
	data := r.done.DataDir
	for _, name := range []string{"postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "recovery.conf"} {
		if err := os.Remove(filepath.Join(data, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("restore PostgreSQL: %w", err)
		}
	}
	seen := map[string]bool{}
	for _, name := range []string{"postgresql.conf", "postgresql.auto.conf"} {
		if err := r.cleanConfig(filepath.Join(data, name), seen, 0); err != nil {
			return err
		}
	}
	for _, name := range []string{"pg_hba.conf", "pg_ident.conf"} {
		if err := r.cleanAccess(filepath.Join(data, name)); err != nil {
			return err
		}
	}
	if err := r.fillMissing(); err != nil {
		return err
	}
	return r.takeControl()
}

// cleanConfig puts dangerous lines of a configuration file out of force, and of
// the files it includes.
func (r *restoration) cleanConfig(path string, seen map[string]bool, depth int) error {
	if seen[path] || depth > 10 { // 10 is the server's own limit
		return nil
	}
	seen[path] = true
	content, ok, err := r.readInside(path)
	if err != nil || !ok {
		return err
	}
	var out []string
	for _, line := range strings.Split(string(content), "\n") {
		name, value, isSetting := settingOf(line)
		switch {
		case !isSetting:
		case name == "include", name == "include_if_exists", name == "include_dir":
			inside, err := r.cleanIncluded(path, name, value, seen, depth)
			if err != nil {
				return err
			}
			if !inside {
				r.done.note("%s: %s '%s' leads out of the restored directory and was put out of force", filepath.Base(path), name, value)
				line = retired + line
			}
		case dropped[name]:
			line = retired + line
		case placed[name] && (filepath.IsAbs(value) || strings.HasPrefix(filepath.Clean(value), "..")):
			r.done.note("%s = '%s' leads out of the restored directory and was put out of force", name, value)
			line = retired + line
		case libraries[name]:
			line = r.keepLibraries(line, name, value)
		}
		out = append(out, line)
	}
	if err := writeFile(path, []byte(strings.Join(out, "\n")), 0o600); err != nil {
		return fmt.Errorf("restore PostgreSQL: rewrite %s: %w", path, err)
	}
	return nil
}

// readInside reads a file of the data directory; a link that leads out counts
// as missing.
func (r *restoration) readInside(path string) (content []byte, ok bool, err error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("restore PostgreSQL: %w", err)
	}
	if !st.Mode().IsRegular() {
		if err := os.Remove(path); err != nil {
			return nil, false, stage.Permanentf("restore PostgreSQL: %s is no file: %w: verify the set", path, err)
		}
		return nil, false, nil
	}
	content, err = readLimited(path, maxConfigFile)
	if err != nil {
		return nil, false, fmt.Errorf("restore PostgreSQL: read %s: %w", path, err)
	}
	return content, true, nil
}

// cleanIncluded follows an include that stays inside the data directory.
func (r *restoration) cleanIncluded(path, directive, value string, seen map[string]bool, depth int) (inside bool, err error) {
	target := value
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(path), target)
	}
	if !strings.HasPrefix(filepath.Clean(target), r.done.DataDir+"/") {
		return false, nil
	}
	if directive != "include_dir" {
		_, err := os.Lstat(target)
		if err != nil && directive == "include" {
			return false, nil // the server would refuse to start
		}
		return true, r.cleanConfig(target, seen, depth+1)
	}
	entries, err := os.ReadDir(target)
	if err != nil {
		return false, nil
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".conf") && !strings.HasPrefix(e.Name(), ".") {
			if err := r.cleanConfig(filepath.Join(target, e.Name()), seen, depth+1); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// keepLibraries keeps those libraries of a list that are installed here.
func (r *restoration) keepLibraries(line, name, value string) string {
	if r.bin == "" {
		return line
	}
	var keep []string
	missing := false
	for _, lib := range strings.Split(value, ",") {
		lib = strings.Trim(strings.TrimSpace(lib), `"`)
		if lib == "" {
			continue
		}
		if r.hasLibrary(lib) {
			keep = append(keep, lib)
			continue
		}
		missing = true
		r.done.note("%s: library %s is not installed here and was left out: install it and take it in again before use", name, lib)
	}
	if !missing {
		return line
	}
	return fmt.Sprintf("%s%s\n%s = '%s'", retired, line, name, strings.Join(keep, ","))
}

func (r *restoration) hasLibrary(lib string) bool {
	if strings.Contains(lib, "/") && !strings.HasPrefix(lib, "$libdir/") {
		return false // a place of the original host
	}
	file := strings.TrimSuffix(strings.TrimPrefix(lib, "$libdir/"), ".so") + ".so"
	for _, dir := range []string{filepath.Join(r.bin, "../lib"), filepath.Join(r.bin, "../lib/postgresql"), filepath.Join(r.bin, "../lib64")} {
		if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
			return true
		}
	}
	return false
}

// cleanAccess puts those lines of pg_hba.conf and pg_ident.conf out of force
// that include files from outside.
func (r *restoration) cleanAccess(path string) error {
	content, ok, err := r.readInside(path)
	if err != nil || !ok {
		return err
	}
	lines := strings.Split(string(content), "\n")
	for i, line := range lines {
		bare, _, _ := strings.Cut(line, "#")
		directive, target := includeOf(line)
		if directive == "" {
			for _, word := range strings.FieldsFunc(bare, func(c rune) bool { return c == ' ' || c == '\t' || c == ',' }) {
				if name, isList := strings.CutPrefix(strings.Trim(word, `"`), "@"); isList && name != "" {
					target = name
				}
			}
		}
		if target == "" {
			continue
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(r.done.DataDir, target)
		}
		if !strings.HasPrefix(filepath.Clean(target), r.done.DataDir+"/") {
			lines[i] = retired + line
			r.done.note("%s: a line that leads out of the restored directory was put out of force: %s", filepath.Base(path), strings.TrimSpace(line))
		}
	}
	if err := writeFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		return fmt.Errorf("restore PostgreSQL: rewrite %s: %w", path, err)
	}
	return nil
}

// fillMissing writes what a data directory needs to start where the
// configuration lay elsewhere.
func (r *restoration) fillMissing() error {
	limits := []string{"# Made by a restore: the original configuration lay outside the data directory."}
	names := make([]string, 0, len(r.o.Part.Limits))
	for name := range r.o.Part.Limits {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if n, v, ok := settingOf(name + " = 0"); ok && n == name && v == "0" {
			limits = append(limits, fmt.Sprintf("%s = %d", name, r.o.Part.Limits[name]))
		}
	}
	files := map[string][]string{
		"postgresql.conf": limits,
		// The socket lets in its owner only (unix_socket_permissions below).
		"pg_hba.conf":   {"# Made by a restore: the socket is for the server's own account only.", "local  all  all  trust", "local  replication  all  trust"},
		"pg_ident.conf": {"# Made by a restore: empty."},
	}
	for name, lines := range files {
		path := filepath.Join(r.done.DataDir, name)
		if _, err := os.Lstat(path); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("restore PostgreSQL: %w", err)
		}
		if err := writeFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			return fmt.Errorf("restore PostgreSQL: write %s: %w", path, err)
		}
		r.done.note("%s was not in the data directory: a minimal one was made", name)
	}
	return nil
}

// maxSocketDir leaves room for "/.s.PGSQL.65535.lock" in the 107 bytes of a
// unix socket's address.
const maxSocketDir = 87

// takeControl appends the settings that win over all others, and asks for
// recovery from the WAL in pg_wal up to consistency.
func (r *restoration) takeControl() error {
	socket := filepath.Join(r.o.Target, "socket")
	if len(socket) > maxSocketDir {
		socket = "/tmp"
		r.done.note("the path of %s is too long for a socket: the restored server puts its socket into /tmp", r.o.Target)
	} else if err := os.Mkdir(socket, 0o700); err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	recovery := []string{
		// Fails always, so that the server takes what lies in pg_wal.
		"restore_command = 'false'",
		"recovery_target = 'immediate'",
		"recovery_target_action = 'promote'",
	}
	major := r.o.Part.ServerVersionNum / 10000
	if major >= 12 {
		recovery = append(recovery, "recovery_target_timeline = 'current'")
	}
	settings := []string{
		"", "# Appended by a restore: this server keeps to itself. Remove these lines to put it into service.",
		"archive_mode = 'off'", "archive_command = ''",
		"listen_addresses = ''", "unix_socket_directories = '" + socket + "'", "unix_socket_permissions = '0700'",
		"ssl = 'off'", "synchronous_standby_names = ''",
	}
	signal, auto := "recovery.signal", filepath.Join(r.done.DataDir, "postgresql.auto.conf")
	content := ""
	if major >= 12 {
		settings = append(settings, "primary_conninfo = ''", "primary_slot_name = ''")
		settings = append(settings, recovery...)
	} else {
		signal, content = "recovery.conf", strings.Join(recovery, "\n")+"\n"
	}
	if major >= 15 {
		settings = append(settings, "archive_library = ''")
	}
	old, _, err := r.readInside(auto)
	if err != nil {
		return err
	}
	if err := writeFile(auto, []byte(string(old)+strings.Join(settings, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("restore PostgreSQL: write %s: %w", auto, err)
	}
	if err := writeFile(filepath.Join(r.done.DataDir, signal), []byte(content), 0o600); err != nil {
		return fmt.Errorf("restore PostgreSQL: write %s: %w", signal, err)
	}
	r.done.note("the restored server listens on the socket in %s only and does not archive; the last lines of postgresql.auto.conf say so", socket)
	return nil
}
