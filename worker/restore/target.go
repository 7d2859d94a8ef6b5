package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
	"catalog-backup/worker/eventbus"
	"catalog-backup/worker/postgres"

	"golang.org/x/sys/unix"
)

// check refuses what can be refused before the archives are read.
func (j *job) check(ctx context.Context) error {
	if err := j.chooseParts(); err != nil {
		return err
	}
	if err := j.resolveTarget(); err != nil {
		return err
	}
	if err := j.emptyTarget(); err != nil {
		return err
	}
	if err := j.haveArchives(); err != nil {
		return err
	}
	if j.wants(PostgresPart) {
		if err := j.canServe(ctx); err != nil {
			return err
		}
	}
	var least need
	if p := j.s.Manifest.Postgres; p != nil {
		least.repo = p.RepoSize
	}
	if err := j.space(least); err != nil {
		return err
	}
	if j.o.Bus == nil {
		return nil
	}
	if err := eventbus.CheckTarget(ctx, *j.o.Bus, j.s.Manifest.EventBus); err != nil {
		return fmt.Errorf("restore set %s: %w; nothing was written", j.result.Set, err)
	}
	return nil
}

func (j *job) refuse(kind error, format string, args ...any) error {
	return refusal{kind, fmt.Sprintf("restore set %s: ", j.result.Set) + fmt.Sprintf(format, args...)}
}

func (j *job) chooseParts() error {
	has := j.s.Manifest.Parts()
	for _, p := range j.o.Only {
		if !slices.Contains(AllParts, p) {
			return j.refuse(ErrUsage, "%q is not a part; --only takes %s", p, strings.Join(AllParts, ", "))
		}
		if !slices.Contains(has, p) {
			return j.refuse(ErrNotFound, "the set has no part %s; it has %s", p, strings.Join(has, ", "))
		}
	}
	for _, p := range AllParts {
		if slices.Contains(has, p) && (len(j.o.Only) == 0 || slices.Contains(j.o.Only, p)) {
			j.parts = append(j.parts, p)
		}
	}
	if j.o.Bus != nil && !j.wants(EventBusPart) {
		return j.refuse(ErrUsage, "there is a bus to load into, and the part eventbus is not in the set or not among those to restore; leave --bus out")
	}
	if j.o.FinalRetention && j.o.Bus == nil {
		return j.refuse(ErrUsage, "--final-retention is about topics that are loaded into a bus; give --bus too")
	}
	j.result.Parts = j.parts
	return nil
}

// resolveTarget makes the target an absolute path without symbolic links, since
// tools that run as somebody else must find it.
func (j *job) resolveTarget() error {
	if j.o.Target == "" {
		return j.refuse(ErrUsage, "say where to by --target DIR")
	}
	abs, err := filepath.Abs(j.o.Target)
	if err != nil {
		return j.refuse(ErrUsage, "target %s: %v", j.o.Target, err)
	}
	have, rest := abs, ""
	for {
		real, err := filepath.EvalSymlinks(have)
		if err == nil {
			abs = filepath.Join(real, rest)
			break
		}
		if _, lerr := os.Lstat(have); lerr == nil || !errors.Is(err, fs.ErrNotExist) || have == "/" {
			return j.refuse(ErrUsage, "target %s: %v; choose another directory", j.o.Target, err)
		}
		have, rest = filepath.Dir(have), filepath.Join(filepath.Base(have), rest)
	}
	j.o.Target, j.result.Target = abs, abs
	if strings.ContainsFunc(abs, func(r rune) bool {
		return r < ' ' || r == 0x7f || r == '\'' || r == '"' || r == '\\' || r == '$' || r == '`'
	}) {
		return j.refuse(ErrUsage, "the target %q has characters that PostgreSQL's and pgBackRest's configuration do not take; choose a plain path", abs)
	}
	return nil
}

// emptyTarget refuses a target that holds anything.
func (j *job) emptyTarget() error {
	entries, err := os.ReadDir(j.o.Target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, syscall.ENOTDIR):
		return j.refuse(ErrUsage, "the target %s is not a directory; choose another", j.o.Target)
	case err != nil:
		return j.refuse(ErrUsage, "the target %s: %v; choose another directory", j.o.Target, err)
	case slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == stagingName }):
		return j.refuse(ErrUsage, "the target %s holds a restore that was not finished (%s is in it); remove it, or choose another directory", j.o.Target, stagingName)
	case len(entries) > 0:
		return j.refuse(ErrUsage, "the target %s is not empty (%s is in it); choose a directory that is empty or not there yet", j.o.Target, strconv.Quote(entries[0].Name()))
	}
	return nil
}

func (j *job) haveArchives() error {
	for _, kind := range j.kinds() {
		a, ok := j.s.Manifest.Archive(kind)
		path := j.s.paths[kind]
		problem := fmt.Sprintf("the archive is missing in %s", j.s.Dir)
		if ok && path != "" && exists(path) {
			if regularFile(path) {
				continue
			}
			problem = "it is not a regular file"
		}
		if !ok {
			a.Name = "an archive of kind " + kind
		}
		others := slices.DeleteFunc(slices.Clone(j.parts), func(p string) bool { return (p == EventBusPart) == (kind == set.EventBusArchive) })
		remedy := "bring it"
		if len(others) > 0 {
			remedy += ", or restore the rest by --only " + strings.Join(others, ",")
		}
		return &DamagedError{Set: j.result.Set, Doing: "restore set " + j.result.Set, Total: 1, Remedy: "nothing was written: " + remedy,
			Damage: []Damage{{Archive: a.Name, Entry: a.Name, Problem: problem}}}
	}
	return nil
}

// canServe refuses where pgBackRest is missing, or where the account that has to
// run the restored server could not reach it.
func (j *job) canServe(ctx context.Context) error {
	if err := findPgBackRest(j.o.PgBackRest); err != nil {
		return j.refuse(nil, "%v; nothing was written", err)
	}
	if os.Geteuid() != 0 {
		return nil
	}
	uid, gid, name, err := j.account()
	if err != nil {
		return j.refuse(nil, "%v; nothing was written", err)
	}
	for _, dir := range wayTo(j.o.Target) {
		err := j.o.Runner.Run(ctx, postgres.Command{Path: "test", Args: []string{"-x", dir}, Dir: "/", Env: []string{"PATH=/usr/bin:/bin"}, Credential: &postgres.Credential{UID: uid, GID: gid}})
		var exited interface{ ExitCode() int }
		if errors.As(err, &exited) && exited.ExitCode() == 1 {
			return j.refuse(nil, "the account %s, which will run the restored server, cannot enter %s: chmod o+x %s, or choose another target; nothing was written", name, dir, dir)
		}
		if err != nil {
			return fmt.Errorf("restore set %s: find out whether the account %s can enter %s: %w; nothing was written", j.result.Set, name, dir, err)
		}
	}
	return nil
}

func findPgBackRest(given string) error {
	for _, name := range []string{given, "pgbackrest", "/usr/bin/pgbackrest"} {
		if name == "" {
			continue
		}
		if _, err := exec.LookPath(name); err == nil {
			return nil
		}
		if name == given {
			break
		}
	}
	return errors.New("pgBackRest is not on this host: install it (apt-get install pgbackrest), or restore the other parts by --only")
}

// account is who will run the restored server: the owner of the target, if that is
// not root, else postgres. postgres.Restore decides by the same rule.
func (j *job) account() (uid, gid uint32, name string, err error) {
	if st, err := os.Stat(j.o.Target); err == nil {
		if own := st.Sys().(*syscall.Stat_t); own.Uid != 0 {
			j.owner = &archive.Owner{UID: int(own.Uid), GID: int(own.Gid)}
			return own.Uid, own.Gid, fmt.Sprintf("#%d", own.Uid), nil
		}
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return 0, 0, "", fmt.Errorf("PostgreSQL cannot run as root and there is no account postgres: make the target and give it to the account that shall run the server (chown)")
	}
	id, err1 := strconv.ParseUint(u.Uid, 10, 32)
	group, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return uint32(id), uint32(group), u.Username, errors.Join(err1, err2)
}

// wayTo are the directories above the target that exist, from the top. The target
// itself is ours to open.
func wayTo(target string) []string {
	var way []string
	for d := filepath.Dir(target); ; d = filepath.Dir(d) {
		if exists(d) {
			way = append([]string{d}, way...)
		}
		if d == "/" {
			return way
		}
	}
}

// spareSpace is left for the restored server's first steps: new WAL, logs.
const spareSpace = 128 << 20

// space refuses a disk that is too small. n are the entries as the verification saw
// them; before it, only what the manifest tells is known. The repository and the
// data directory are there at the same time.
func (j *job) space(n need) error {
	m := j.s.Manifest
	var total int64
	if j.wants(PostgresPart) {
		total += m.Postgres.Size + n.repo + 2*n.config + 2*m.Postgres.WALSegmentSize + spareSpace
	}
	if j.wants(FilesPart) {
		total += n.files
	}
	if j.wants(EventBusPart) {
		total += n.bus
	}
	free, err := archive.FreeSpace(j.o.Target)
	if err != nil {
		return fmt.Errorf("restore set %s: %w; nothing was written", j.result.Set, err)
	}
	if free < total {
		return j.refuse(nil, "the target %s has %d bytes free and %d are needed; free some or choose a larger disk; nothing was written", j.o.Target, free, total)
	}
	return nil
}

// makeTarget makes the target and what is missing above it. The account that runs
// the restored server only passes through.
func (j *job) makeTarget() error {
	var missing []string
	for d := j.o.Target; !exists(d); d = filepath.Dir(d) {
		missing = append([]string{d}, missing...)
	}
	passable := os.FileMode(0o700)
	if j.wants(PostgresPart) && os.Geteuid() == 0 {
		passable = 0o711
	}
	for _, d := range missing {
		if err := j.mkdir(d, passable); err != nil {
			return err
		}
	}
	if st, err := os.Stat(j.o.Target); err != nil {
		return err
	} else if mode := st.Mode().Perm(); passable == 0o711 && mode&0o001 == 0 && j.owner == nil {
		if err := os.Chmod(j.o.Target, st.Mode()|0o011); err != nil {
			return err
		}
		j.result.Notes = append(j.result.Notes, fmt.Sprintf("%s was made passable (%04o, it was %04o), since the server that runs in it is not root", j.o.Target, mode|0o011, mode))
	}
	if entries, err := os.ReadDir(j.o.Target); err != nil || len(entries) > 0 {
		return errors.Join(err, errors.New("the target is no longer empty"))
	}
	return j.mkdir(j.staging(), 0o700)
}

// mkdir makes one directory with just this mode, whatever the umask. It has no ACL:
// a default one of the directory above would pass to it, and from it to all that is made below.
func (j *job) mkdir(dir string, mode os.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil {
		return err
	}
	for _, name := range []string{"system.posix_acl_default", "system.posix_acl_access"} {
		if err := unix.Lremovexattr(dir, name); err != nil && err != unix.ENODATA && err != unix.ENOTSUP {
			return fmt.Errorf("take the inherited ACL from %s: %w", dir, err)
		}
	}
	return os.Chmod(dir, mode)
}

// syncAll brings all of dir's file system to the disk.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}
