package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"sync"

	"catalog-backup/worker/stage"
)

// minTool is the oldest pgBackRest that bundles small files (2.39, release notes).
var minTool = toolVersion{2, 39}

// toolFor is the first pgBackRest that knows a major version of PostgreSQL
// (pgBackRest's release notes; Debian's changelog of 2.45). A version that is
// not listed is left to the tool itself, which refuses what it does not know.
var toolFor = map[int]toolVersion{15: {2, 41}, 16: {2, 48}, 17: {2, 53}, 18: {2, 57}}

type toolVersion struct{ major, minor int }

func (v toolVersion) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

func (v toolVersion) less(w toolVersion) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

// tool runs pgBackRest.
type tool struct {
	path       string
	runner     Runner
	credential *Credential
	env        []string
}

// findTool looks pgBackRest up.
func findTool(given string) (string, error) {
	if given != "" {
		p, err := exec.LookPath(given)
		if err != nil {
			return "", stage.Permanentf("find pgBackRest: %s is not a program that can be run: %w: install it (apt-get install pgbackrest) or correct its path", given, err)
		}
		return p, nil
	}
	for _, name := range []string{"pgbackrest", "/usr/bin/pgbackrest"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", stage.Permanentf("find pgBackRest: it is not installed on this host: install it (apt-get install pgbackrest)")
}

// childEnv is all that a child sees: nothing named PG* or PGBACKREST_* of ours
// gets through.
func childEnv(home string) []string {
	if home == "" {
		home = "/"
	}
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + home, "LANG=C", "LC_ALL=C", "TZ=UTC"}
}

// credentialOf gives the account for a child that shall run as uid; nil when
// that is who we are.
func credentialOf(uid, gid uint32) *Credential {
	if os.Geteuid() == int(uid) {
		return nil
	}
	c := &Credential{UID: uid, GID: gid}
	if u, err := user.LookupId(strconv.Itoa(int(uid))); err == nil {
		ids, _ := u.GroupIds()
		for _, id := range ids {
			if n, err := strconv.ParseUint(id, 10, 32); err == nil {
				c.Groups = append(c.Groups, uint32(n))
			}
		}
	}
	return c
}

// toolError is a failed run of pgBackRest, told by its own last words.
type toolError struct {
	command  string
	code     int // -1 = killed or not started
	messages string
	err      error
}

func (e *toolError) Error() string {
	if e.messages == "" {
		return fmt.Sprintf("pgbackrest %s: %v", e.command, e.err)
	}
	return fmt.Sprintf("pgbackrest %s ended with code %d: %s", e.command, e.code, e.messages)
}

func (e *toolError) Unwrap() error { return e.err }

// run runs one command of pgBackRest. extra sees the lines of its standard
// output; a failure is a *toolError or the end of ctx.
func (t *tool) run(ctx context.Context, extra func(line string), command string, args ...string) ([]byte, error) {
	out := &lineWriter{each: extra, keep: extra == nil}
	errs := &lineWriter{}
	err := t.runner.Run(ctx, Command{
		Path: t.path, Args: args, Env: t.env, Dir: "/", Credential: t.credential,
		Stdout: out, Stderr: errs,
	})
	out.flush()
	errs.flush()
	if err == nil {
		return out.kept.Bytes(), nil
	}
	if stop := ended(ctx, "pgbackrest "+command); stop != nil {
		return nil, stop
	}
	messages := errs.messages()
	if messages == "" {
		messages = out.messages()
	}
	return nil, &toolError{command: command, code: exitCode(err), messages: messages, err: err}
}

// lineWriter cuts what a child writes into lines and remembers the errors.
type lineWriter struct {
	mu     sync.Mutex
	each   func(string)
	keep   bool // keep everything, up to keepLimit
	kept   bytes.Buffer
	part   []byte
	errs   []string
	inside bool
}

const (
	keepLimit = 16 << 20
	lineLimit = 64 << 10
)

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.keep && w.kept.Len()+len(p) <= keepLimit {
		w.kept.Write(p)
	}
	rest := p
	for {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			break
		}
		w.line(string(append(w.part, rest[:i]...)))
		w.part = w.part[:0]
		rest = rest[i+1:]
	}
	if len(w.part)+len(rest) <= lineLimit {
		w.part = append(w.part, rest...)
	}
	return len(p), nil
}

func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.part) > 0 {
		w.line(string(w.part))
		w.part = nil
	}
}

// line takes an ERROR with its hints: pgBackRest writes
// "2026-11-23 18:37:59.741 P00  ERROR: [055]: text" and indents what follows.
func (w *lineWriter) line(s string) {
	if w.each != nil {
		w.each(s)
	}
	text := strings.TrimSpace(s)
	_, message, isError := strings.Cut(s, "ERROR: ")
	switch {
	case isError:
		w.inside, text = true, message
	case !w.inside || !strings.HasPrefix(s, "  "):
		w.inside = false
		return
	}
	if len(w.errs) < 20 && text != "" {
		w.errs = append(w.errs, strings.TrimSpace(text))
	}
}

func (w *lineWriter) messages() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.errs, "; ")
}

// version asks the program for its version.
func (t *tool) version(ctx context.Context) (string, toolVersion, error) {
	out, err := t.run(ctx, nil, "version", "version")
	if err != nil {
		return "", toolVersion{}, fmt.Errorf("ask %s for its version: %w", t.path, err)
	}
	var v toolVersion
	text := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(string(out)), "pgBackRest"))
	if _, err := fmt.Sscanf(text, "%d.%d", &v.major, &v.minor); err != nil {
		return "", toolVersion{}, stage.Permanentf("ask %s for its version: %q is no version of pgBackRest: is it the right program?", t.path, text)
	}
	return text, v, nil
}

// checkVersion refuses a tool that is too old, for us or for the server.
func checkVersion(have toolVersion, pgMajor int) error {
	if have.less(minTool) {
		return stage.Permanentf("pgBackRest %s is too old: at least %s is needed: install a newer one", have, minTool)
	}
	newest, known := 0, false
	for major := range toolFor {
		newest = max(newest, major)
	}
	need, known := toolFor[pgMajor]
	if known && have.less(need) {
		return stage.Permanentf("PostgreSQL %d is newer than pgBackRest %s knows: install pgBackRest %s or newer", pgMajor, have, need)
	}
	if pgMajor > newest && !toolFor[newest].less(have) {
		return stage.Permanentf("PostgreSQL %d is newer than pgBackRest %s knows: install a newer pgBackRest", pgMajor, have)
	}
	return nil
}

// compressType finds the best compression that this build of the tool has. Its
// help names all types, also those that were not compiled in; so each is tried
// on a file that is not there.
func (t *tool) compressType(ctx context.Context, wanted string) (string, error) {
	types := []string{"zst", "lz4", "gz"}
	if wanted != "" {
		if _, err := extension(wanted); err != nil {
			return "", stage.Permanentf("compression %q is not known: use zst, lz4, gz, bz2 or none", wanted)
		}
		types = []string{wanted}
	}
	for _, kind := range types {
		_, err := t.run(ctx, func(string) {}, "archive-push", "--no-config", "--stanza=probe", "--pg1-path=/nonexistent",
			"--repo1-path=/nonexistent", "--lock-path=/nonexistent", "--log-level-file=off", "--log-level-console=error",
			"--compress-type="+kind, "archive-push", "/nonexistent/000000010000000000000001")
		var failed *toolError
		if err != nil && !errors.As(err, &failed) {
			return "", err
		}
		if failed == nil || failed.code == exitFileMissing {
			return kind, nil
		}
	}
	return "", stage.Permanentf("pgBackRest here has no compression %s: install a build that has it or set another type", strings.Join(types, ", "))
}

// Exit codes of pgBackRest (src/build/error/error.yaml; those marked in the
// facts were seen).
const (
	exitOptionInvalid = 31
	exitOptionValue   = 32
	exitFileOpen      = 41
	exitLock          = 50
	exitFileMissing   = 55
	exitConnect       = 56
	exitMismatch      = 58
	exitWrite         = 64
	exitLinkExpected  = 69
	exitLinkTarget    = 70
	exitRestarted     = 101
)

// explain gives a failure of pgBackRest its remedy and says whether a retry helps.
func explain(err error, f *Facts, repo string) error {
	var t *toolError
	if !errors.As(err, &t) {
		return err
	}
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(t.messages, w) {
				return true
			}
		}
		return false
	}
	switch {
	case has("No space left on device", "Disk quota exceeded", "File too large"):
		return stage.Permanentf("%w: the disk of %s is full: make room there or move alation.backup.data_dump_dir", err, repo)
	case t.code == exitWrite:
		return stage.Permanentf("%w: writing to %s failed: check the disk's space and health", err, repo)
	case has("is this version of PostgreSQL supported", "unexpected control version"):
		return stage.Permanentf("%w: this PostgreSQL is newer than the installed pgBackRest knows: install a newer pgBackRest", err)
	case t.code == exitLock:
		return fmt.Errorf("%w: another pgBackRest backup works on this cluster: wait for it to end, or end it", err)
	case t.code == exitConnect && !has("authentication failed", "pg_hba.conf", "password", "not permitted to log in", "does not exist"):
		// The preflight logged in by this very socket. So this is a server that
		// restarts: in recovery after a crash it is "no primary" for a moment.
		return fmt.Errorf("%w: the server does not answer on its socket in %s: is it running?", err, f.SocketDir)
	case t.code == exitConnect:
		return stage.Permanentf("%w: let the account %s in as role %s, with this line in pg_hba.conf and a reload: %s", err, f.ownerName(), f.Role, hbaLine("all", f.Role))
	case has("permission denied for"):
		return stage.Permanentf("%w: role %s lacks a right that a backup needs: use a superuser in postgres.dsn", err, f.Role)
	case t.code == exitMismatch:
		return stage.Permanentf("%w: server and data directory %s do not belong together: check postgres.dsn", err, f.DataDirectory)
	case t.code == exitRestarted || has("restarted during", "terminating connection", "server closed the connection"):
		return fmt.Errorf("%w: PostgreSQL was restarted or closed the connection during the backup: a retry begins anew", err)
	case has("Permission denied") && t.code != exitConnect:
		return stage.Permanentf("%w: the account %s may not read or write there: correct the owner or the mode", err, f.ownerName())
	case t.code == exitFileOpen && has("missing path/file"):
		return stage.Permanentf("%w: a symbolic link in the data directory leads nowhere: remove it, or bring back what it leads to", err)
	case t.code == exitLinkTarget:
		return stage.Permanentf("%w: pgBackRest does not follow this link in the data directory: remove it (a tablespace whose location is in the data directory: move what is in it to another one, ALTER TABLE … SET TABLESPACE, and drop it)", err)
	case t.code == exitLinkExpected:
		return stage.Permanentf("%w: pgBackRest backs up no tablespace that lies in pg_tblspc itself (allow_in_place_tablespaces): move what is in it to another one (ALTER TABLE … SET TABLESPACE, ALTER DATABASE … SET TABLESPACE), and drop it", err)
	case t.code == exitOptionInvalid || t.code == exitOptionValue:
		return stage.Permanentf("%w: this pgBackRest does not take our options: install a version from %s on", err, minTool)
	}
	return err
}

func (f *Facts) ownerName() string {
	if f.OwnerName != "" {
		return f.OwnerName
	}
	return strconv.Itoa(int(f.OwnerUID))
}

// hbaLine is a line of pg_hba.conf that lets a role in by the local socket.
func hbaLine(database, role string) string {
	if strings.ContainsAny(role, " ,\"") {
		role = `"` + strings.ReplaceAll(role, `"`, `""`) + `"`
	}
	return "local  " + database + "  " + role + "  peer"
}
