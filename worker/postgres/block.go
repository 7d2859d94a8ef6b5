package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"catalog-backup/worker/postgres/pgconf"
)

// Marks of the block at the end of postgresql.auto.conf.
const (
	blockBegin = "# catalog-backup restore: begin. These lines win over all others; docs/restoring.md says when to take them out."
	blockEnd   = "# catalog-backup restore: end"
)

// maxSocketDir leaves room for "/.s.PGSQL.65535.lock" in the 107 bytes of a
// unix socket's address.
const maxSocketDir = 87

// socket makes the directory that the restored server listens in.
func (r *restoration) socket() error {
	if r.o.Live {
		return nil
	}
	r.socketDir = filepath.Join(r.o.Target, "socket")
	// libpq and the server take a comma for the end of a name.
	if len(r.socketDir) > maxSocketDir || strings.ContainsAny(r.socketDir, ",\"") {
		dir, err := os.MkdirTemp("/tmp", "restored-")
		if err == nil {
			err = os.Lchown(dir, r.owner.uid, r.owner.gid)
		}
		if err != nil {
			return fmt.Errorf("restore PostgreSQL: make a directory for the socket: %w", err)
		}
		r.socketDir = dir
		r.done.note("the path of %s is too long for a socket, or has a character that a socket's may not have: the restored server's socket is in %s; make that directory anew if it is gone", r.o.Target, dir)
		return nil
	}
	if err := os.Mkdir(r.socketDir, 0o700); err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	return nil
}

// limits are what recovery demands at least, by the names of the settings
// (PostgreSQL's CheckRequiredParameterValues), as pg_controldata names them.
var limits = map[string]string{
	"max_connections": "max_connections setting", "max_worker_processes": "max_worker_processes setting", "max_wal_senders": "max_wal_senders setting",
	"max_prepared_transactions": "max_prepared_xacts setting", "max_locks_per_transaction": "max_locks_per_xact setting",
}

// readControl asks pg_controldata of the right major version for the restored
// cluster's pg_control; nil where that program is not here.
func (r *restoration) readControl(ctx context.Context) map[string]string {
	if r.bin == "" {
		return nil
	}
	var out bytes.Buffer
	err := r.o.Runner.Run(ctx, Command{Path: filepath.Join(r.bin, "pg_controldata"), Args: []string{r.done.DataDir}, Env: childEnv(""), Dir: "/", Stdout: &out, Stderr: &out})
	if err != nil {
		r.done.note("pg_control could not be read (%v): the limits are those of the manifest", err)
		return nil
	}
	said := map[string]string{}
	for _, line := range strings.Split(out.String(), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			said[name] = strings.TrimSpace(value)
		}
	}
	return said
}

// writeBlock appends the settings that win over all others, and asks for recovery
// from the WAL in pg_wal up to consistency.
func (r *restoration) writeBlock() error {
	auto := filepath.Join(r.done.DataDir, "postgresql.auto.conf")
	before, err := os.ReadFile(auto)
	if err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	r.ownLines = string(before)
	block := r.block()
	recovery := []string{
		// Fails always, so that the server takes what lies in pg_wal.
		"restore_command = 'false'", "recovery_target = 'immediate'", "recovery_target_action = 'promote'",
	}
	signal, content := "recovery.signal", ""
	if r.major() >= 12 {
		block = append(block, append(recovery, "recovery_target_timeline = 'current'")...)
	} else {
		signal, content = "recovery.conf", strings.Join(recovery, "\n")+"\n"
	}
	text := r.ownLines
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	text += blockBegin + "\n" + strings.Join(block, "\n") + "\n" + blockEnd + "\n"
	if err := errors.Join(writeFile(auto, []byte(text), 0o600), writeFile(filepath.Join(r.done.DataDir, signal), []byte(content), 0o600)); err != nil {
		return fmt.Errorf("restore PostgreSQL: write what keeps the server to itself: %w", err)
	}
	return nil
}

func (r *restoration) block() []string {
	var lines []string
	put := func(from int, pairs ...string) {
		for i := 0; i < len(pairs) && r.major() >= from; i += 2 {
			lines = append(lines, pgconf.Quote(pairs[i], pairs[i+1]))
		}
	}
	put(0, "archive_mode", "off", "archive_command", "")
	put(12, "archive_cleanup_command", "", "recovery_end_command", "", "primary_conninfo", "", "primary_slot_name", "")
	put(15, "archive_library", "")
	put(17, "sync_replication_slots", "off")
	if mb := r.o.Part.WALSegmentSize >> 20; mb > 16 { // as initdb sets them: the defaults are too small for such segments to start with
		put(0, "min_wal_size", fmt.Sprintf("%dMB", 5*mb), "max_wal_size", fmt.Sprintf("%dMB", 64*mb))
	}
	put(0, "huge_pages", "try")
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		if n, recorded := r.limit(name); recorded {
			put(0, name, strconv.Itoa(n))
		}
	}
	if r.control["track_commit_timestamp setting"] == "on" || r.o.Part.TrackCommitTimestamp {
		put(0, "track_commit_timestamp", "on")
	}
	if lower := r.lowerBuffers(); lower != "" {
		put(0, "shared_buffers", lower)
	}
	if r.o.Live {
		for _, name := range preloads {
			if value, recorded := r.o.Part.Preload[name]; recorded {
				put(0, name, value)
			}
		}
		return lines
	}
	level := "replica"
	if r.control["wal_level setting"] == "logical" {
		level = "logical"
	}
	put(0, "wal_level", level, "superuser_reserved_connections", "0",
		"listen_addresses", "", "port", strconv.Itoa(quietPort), "unix_socket_directories", r.socketDir, "unix_socket_permissions", "0700",
		"ssl", "off", "synchronous_standby_names", "", "max_logical_replication_workers", "0", "logging_collector", "off",
		"shared_preload_libraries", strings.Join(r.libraries["shared_preload_libraries"], ", "),
		"session_preload_libraries", strings.Join(r.libraries["session_preload_libraries"], ", "), "local_preload_libraries", "")
	put(17, "event_triggers", "off") // those at log-in run in every session
	still := silence(r.kept)
	for _, name := range slices.Sorted(maps.Keys(still)) {
		put(0, name, still[name])
	}
	return lines
}

// quietPort is the port in the name of the restored server's socket.
const quietPort = 5432

// limit is what pg_control or the manifest names: what the original ran with. What
// its files name may be something that it would have begun with only later.
func (r *restoration) limit(name string) (n int, recorded bool) {
	n, recorded = r.o.Part.Limits[name]
	if v, err := strconv.Atoi(r.control[limits[name]]); err == nil {
		return max(n, v), true
	}
	return n, recorded
}

func (r *restoration) major() int { return r.o.Part.ServerVersionNum / 10000 }

// lowerBuffers gives shared_buffers for this host where the original's, or the
// default of 128 MB, takes more than half of its memory; else "".
func (r *restoration) lowerBuffers() string {
	memory := r.o.Memory
	if memory == 0 {
		memory = hostMemory()
	}
	have, ok := memoryOf(r.values["shared_buffers"])
	if !ok || r.refused["shared_buffers"] {
		have = 128 << 20
	}
	if memory == 0 || have <= memory/2 {
		return ""
	}
	lower := fmt.Sprintf("%dMB", max(memory/4>>20, 1))
	if !r.saidBuffers {
		r.saidBuffers = true
		r.done.note("shared_buffers of %d MB is more than this host with %d MB of memory can have: it is %s here", have>>20, memory>>20, lower)
	}
	return lower
}

var memoryValue = regexp.MustCompile(`^\s*(\d+(?:\.\d*)?|0x[0-9a-fA-F]+)\s*(B|kB|MB|GB|TB|)\s*$`)

// memoryOf understands a value of shared_buffers; without a unit it counts pages
// of 8 kB.
func memoryOf(value string) (int64, bool) {
	m := memoryValue.FindStringSubmatch(value)
	if m == nil {
		return 0, false
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if hex, isHex := strings.CutPrefix(m[1], "0x"); isHex {
		var h uint64
		h, err = strconv.ParseUint(hex, 16, 63)
		n = float64(h)
	}
	n *= map[string]float64{"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40, "": 8 << 10}[m[2]]
	if err != nil || n >= math.MaxInt64 {
		return math.MaxInt64, true
	}
	return int64(n), true
}

// hostMemory is the memory that this host, or the container that we are in, has;
// 0 if it cannot be told.
func hostMemory() int64 {
	var memory int64
	if info, err := os.ReadFile("/proc/meminfo"); err == nil {
		for _, line := range strings.Split(string(info), "\n") {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" {
				kb, _ := strconv.ParseInt(f[1], 10, 64)
				memory = kb << 10
			}
		}
	}
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if limit, err := os.ReadFile(path); err == nil {
			if n, err := strconv.ParseInt(strings.TrimSpace(string(limit)), 10, 64); err == nil && n > 0 && (memory == 0 || n < memory) {
				memory = n
			}
		}
	}
	return memory
}
