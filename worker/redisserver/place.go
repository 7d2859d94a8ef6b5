package redisserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"catalog-backup/worker/keeper"
	"catalog-backup/worker/stage"
)

// maxSocket is the longest socket path in bytes. The kernel takes 107 (unix(7)),
// some clients fewer.
const maxSocket = 100

// maxLog is the size in bytes at which the log is set aside before a start.
const maxLog = 4 << 20

// prepare checks the options and makes the directories. Its errors are permanent.
func (s *Server) prepare(ctx context.Context) error {
	for _, path := range []string{s.Dir, s.Socket} {
		if !filepath.IsAbs(path) || strings.ContainsAny(path, "\n\r\x00") {
			return stage.Permanentf("%q is no absolute path; set state_dir to one", path)
		}
	}
	s.Dir, s.Socket = filepath.Clean(s.Dir), filepath.Clean(s.Socket)
	if len(s.Socket) > maxSocket {
		return stage.Permanentf("the socket's path %s has %d bytes, the most is %d; set a shorter state_dir or socket", s.Socket, len(s.Socket), maxSocket)
	}
	if s.Group != "" {
		g, err := user.LookupGroup(s.Group)
		if err != nil {
			return stage.Permanentf("the socket's group: %w; create it (groupadd %s) or set another", err, s.Group)
		}
		if s.gid, err = strconv.Atoi(g.Gid); err != nil {
			return stage.Permanentf("the socket's group %s: %w", s.Group, err)
		}
	}
	if err := s.findProgram(ctx); err != nil {
		return err
	}
	if err := ownDirectory(s.Dir, 0o700, -1); err != nil {
		return err
	}
	if err := ownDirectory(filepath.Dir(s.Socket), 0o750, s.gid); err != nil {
		return err
	}
	s.checkWay()
	return nil
}

// checkWay says which directories on the way to the socket its group may not
// enter. They are not ours to change.
func (s *Server) checkWay() {
	for dir := filepath.Dir(s.Socket); s.gid >= 0 && dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 != 0 {
			continue
		}
		if int(info.Sys().(*syscall.Stat_t).Gid) != s.gid || info.Mode().Perm()&0o010 == 0 {
			s.Logf("the group %s may not enter %s, so its members cannot use the embedded Redis; do: chgrp %s %s; chmod g+x %s", s.Group, dir, s.Group, dir, dir)
		}
	}
}

// ownDirectory makes the directory dir, or checks that the one that is there is
// ours and that no one else can plant a socket in it. gid, if not -1, must be able
// to enter it.
func ownDirectory(dir string, mode fs.FileMode, gid int) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return stage.Permanentf("making a directory: %w; create it for the worker's user", err)
	}
	err := os.Mkdir(dir, mode)
	made := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return stage.Permanentf("making a directory: %w; create it for the worker's user", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return stage.Permanentf("looking at the directory: %w", err)
	}
	st := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return stage.Permanentf("%s is no directory; remove it or set another", dir)
	case int(st.Uid) != os.Geteuid():
		return stage.Permanentf("the directory %s belongs to user %d, not to the worker's user %d; remove it or set another", dir, st.Uid, os.Geteuid())
	case !made && info.Mode().Perm()&0o002 != 0, !made && info.Mode().Perm()&0o020 != 0 && int(st.Gid) != os.Getegid():
		return stage.Permanentf("others can write to the directory %s (mode %v); set its mode to %04o, or set another", dir, info.Mode().Perm(), mode)
	}
	perm := info.Mode().Perm()
	if made {
		perm = mode // whatever the umask
	}
	if gid >= 0 && perm&0o001 == 0 {
		if int(st.Gid) != gid {
			if err := os.Chown(dir, -1, gid); err != nil {
				return stage.Permanentf("giving the socket's directory to its group: %w; make the worker's user a member of that group", err)
			}
		}
		perm |= 0o050
	}
	if made || perm != info.Mode().Perm() {
		if err := os.Chmod(dir, perm); err != nil {
			return stage.Permanentf("setting the mode of a directory: %w", err)
		}
	}
	return nil
}

// openToGroup gives the socket, which was private so far, to the group.
func (s *Server) openToGroup() error {
	if s.gid >= 0 {
		if err := os.Lchown(s.Socket, -1, s.gid); err != nil {
			return stage.Permanentf("giving the socket to the group %s: %w; make the worker's user a member of it", s.Group, err)
		}
	}
	if err := os.Chmod(s.Socket, 0o660); err != nil {
		return fmt.Errorf("setting the socket's mode: %w", err)
	}
	return nil
}

var versionNumber = regexp.MustCompile(`v=(\d+)\.(\d+)`)

// findProgram looks redis-server up and checks its version.
func (s *Server) findProgram(ctx context.Context) error {
	names := []string{"redis-server", "/usr/bin/redis-server"}
	if s.Program != "" {
		names = []string{s.Program}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			if s.Program, err = filepath.Abs(path); err != nil {
				return err
			}
			out, err := keeper.Output(ctx, keeper.Command{Path: s.Program, Args: []string{"--version"}})
			if err != nil {
				return fmt.Errorf("asking for the version: %w", err)
			}
			v := versionNumber.FindStringSubmatch(string(out))
			if v == nil {
				return stage.Permanentf("%s does not say its version; set the path of redis-server %s or newer", s.Program, oldest)
			}
			major, _ := strconv.Atoi(v[1])
			minor, _ := strconv.Atoi(v[2])
			s.modern = major >= 7
			return tooOld(major, minor, s.Program)
		}
	}
	return stage.Permanentf("there is no %s; install it (apt-get install redis-server), or use another Redis (redis: {address: …})", names[0])
}

// config is the server's configuration. AOF with a sync at each write costs a
// backup run nothing (facts: 1.1 ms a task) and loses nothing.
func (s *Server) config() string {
	lines := []string{
		"# written at each start; changes are lost",
		"port 0",
		"unixsocket " + quote(s.Socket),
		"unixsocketperm 600", // the group comes after, see openToGroup
		"dir " + quote(s.Dir),
		"logfile " + quote(s.path("redis.log")),
		"daemonize no",
		"supervised no",
		`save ""`,
		"appendonly yes",
		"appendfsync always",
		"no-appendfsync-on-rewrite no",
		"maxmemory-policy noeviction",
		"always-show-logo no",
	}
	// Members of the group must not become the worker's user by it.
	if s.modern {
		lines = append(lines, "enable-protected-configs no", "enable-debug-command no", "enable-module-command no")
	} else {
		lines = append(lines, `rename-command CONFIG ""`, `rename-command DEBUG ""`, `rename-command MODULE ""`)
	}
	return strings.Join(lines, "\n") + "\n"
}

// quote is Redis's own (sds.c, sdssplitargs): in double quotes, bytes as \xHH.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(s) {
		if c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String() + `"`
}

// debris are the names, below Dir, of what a killed keeper, worker or server leaves of
// files that it was about to rename: Redis's own (aof.c, rdb.c) are as large as its data.
var debris = []string{"redis.pid.*.part", "temp-*.aof", "temp-*.rdb", "appendonlydir/temp-*"}

// sweep removes debris. No server runs, and the lock is ours.
func (s *Server) sweep() error {
	for _, pattern := range debris {
		names, err := fs.Glob(os.DirFS(s.Dir), pattern)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("removing what a killed Redis left: %w", err)
			}
		}
	}
	return nil
}

func (s *Server) writeConfig() error {
	if info, err := os.Stat(s.path("redis.log")); err == nil && info.Size() > maxLog {
		if err := os.Rename(s.path("redis.log"), s.path("redis.log.1")); err != nil {
			return fmt.Errorf("setting the log aside: %w", err)
		}
	}
	part := s.path("redis.conf.part")
	_ = os.Remove(part)
	if err := os.WriteFile(part, []byte(s.config()), 0o600); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	if err := os.Rename(part, s.path("redis.conf")); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}

// answers asks the Redis on a unix socket for a PONG. One that still loads its
// data is not ready.
func answers(socket string) error {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if line = strings.TrimSpace(line); line != "+PONG" {
		return errors.New(line)
	}
	return nil
}
