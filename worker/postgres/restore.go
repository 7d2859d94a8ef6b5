package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/stage"
)

// RestoreOptions say what to restore and where to.
type RestoreOptions struct {
	Part       *set.Postgres
	Repo       string // the unpacked repository (what lay under set.PostgresRepo)
	Target     string // DIR/postgres; exists and is empty
	ConfigFrom string // the unpacked configuration (what lay under set.PostgresConfig); "" = none
	PgBackRest string // program; "" = looked up
	Processes  int    // 0 = the machine's cores
	// Live leaves workers, libraries, ssl, log-in and listening as they were: the
	// restored server acts for the original as soon as it starts.
	Live bool
	// Installations are directories in which the server's programs may be; nil =
	// where packages put them.
	Installations []string
	Memory        int64 // of this host, in bytes; 0 = looked up
	Runner        Runner
	Progress      stage.Progress // nil = none
}

// Restored is a cluster that starts by itself and refers to nothing outside Target.
type Restored struct {
	DataDir      string
	StartCommand string   // for a shell, as the account that restored
	Psql         string   // for a shell: asks the started server; "" with Live
	Before       []string // what a person has to do before the start command, in order
	Warnings     []string // what may keep the server from being what was backed up
	Notes        []string // what was changed or is missing, for people
}

func (r *Restored) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

func (r *Restored) before(format string, args ...any) {
	r.Before = append(r.Before, fmt.Sprintf(format, args...))
}

func (r *Restored) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// account is who will own and run the restored server.
type account struct {
	uid, gid int
	name     string
}

// Restore restores a backup into Target: the data directory in data/, tablespaces
// in tablespaces/<oid>, configuration from outside the data directory in config/.
// The WAL it needs is put into the data directory, so that the server reaches
// consistency and is promoted with nothing but Target; the repository may be
// removed. As root, everything is given to the account postgres (or to the owner
// of Target where that is not root), since PostgreSQL refuses to run as root.
func Restore(ctx context.Context, o RestoreOptions) (*Restored, error) {
	if o.Progress == nil {
		o.Progress = stage.NoProgress{}
	}
	r := &restoration{o: o, done: &Restored{DataDir: filepath.Join(o.Target, "data")}, values: map[string]string{}, refused: map[string]bool{}, retiredIn: map[string][]string{}}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{r.readHistory, r.findServer, r.unpack, r.bringWAL, r.bringConfig, r.configure, r.missingLibraries, r.hand} {
		if stop := ended(ctx, "restore PostgreSQL"); stop != nil {
			return nil, stop
		}
		if err := step(ctx); err != nil {
			return nil, noSpace(err)
		}
	}
	r.steps()
	return r.done, nil
}

type restoration struct {
	o        RestoreOptions
	done     *Restored
	owner    account
	path     string // pgBackRest
	manifest *manifest
	history  *walHistory // of the WAL that the backup needs
	scratch  string
	bin      string // directory of the server's programs, "" if not here
	programs string // where they will be once they are installed

	control   map[string]string   // what pg_controldata says; nil if it is not here
	socketDir string              // that the restored server listens in; "" with Live
	values    map[string]string   // settings of the original's files, the last of each
	refused   map[string]bool     // settings that this host's server does not take
	libraries map[string][]string // that stay, by setting
	kept      map[string]bool     // the same, in one
	ownLines  string              // postgresql.auto.conf without our block

	moved       map[string]string // files in the data directory that got another name
	seen        map[string]bool   // configuration files that were gone through
	files       []string          // of those, the ones with lines out of force
	retiredIn   map[string][]string
	saidBuffers bool
}

func (r *restoration) prepare() error {
	o := &r.o
	p := o.Part
	switch {
	case o.Runner == nil || p == nil:
		return stage.Permanentf("restore PostgreSQL: no runner or no manifest was given: this is a fault of the program")
	case !filepath.IsAbs(o.Target) || !plainPath(o.Target) || strings.ContainsAny(o.Target, "'\"`$\\"):
		// pg_ctl hands the path to a shell, between double quotes.
		return stage.Permanentf("restore PostgreSQL: the target %q must be a plain absolute path without quotes, backslashes and dollar signs", o.Target)
	case !filepath.IsAbs(o.Repo) || !plainPath(o.Repo):
		return stage.Permanentf("restore PostgreSQL: the repository %q must be a plain absolute path", o.Repo)
	case !validLabel(p.Label) || p.Stanza != Stanza:
		return stage.Permanentf("restore PostgreSQL: the manifest names backup %q of stanza %q, which is none of ours", p.Label, p.Stanza)
	}
	entries, err := os.ReadDir(o.Target)
	if err != nil {
		return stage.Permanentf("restore PostgreSQL: %w: make the target directory", err)
	}
	if len(entries) > 0 {
		return stage.Permanentf("restore PostgreSQL: the target %s is not empty (%s): choose an empty one", o.Target, entries[0].Name())
	}
	if r.owner, err = targetOwner(o.Target); err != nil {
		return err
	}
	if blocked := notEnterable(filepath.Dir(o.Target), uint32(r.owner.uid), uint32(r.owner.gid)); blocked != "" && asRoot() {
		return stage.Permanentf("restore PostgreSQL: the account %s, which will run the server, cannot enter %s: chmod o+x %s or choose another target", r.owner.name, blocked, blocked)
	}
	if r.path, err = findTool(o.PgBackRest); err != nil {
		return err
	}
	r.manifest, err = openManifest(filepath.Join(o.Repo, "backup", Stanza, p.Label, "backup.manifest"))
	if err != nil {
		return err
	}
	if err := r.room(); err != nil {
		return err
	}
	if r.manifest.label != p.Label || strconv.FormatUint(r.manifest.systemID, 10) != p.SystemIdentifier || r.manifest.archiveStop != p.StopWAL || r.manifest.archiveStart != p.StartWAL {
		return stage.Permanentf("restore PostgreSQL: the repository %s holds another backup than the manifest says: verify the set", o.Repo)
	}
	return nil
}

// room checks that the cluster and its WAL fit.
func (r *restoration) room() error {
	p := r.o.Part
	_, segments, err := segmentRange(p.StartWAL, p.StopWAL, p.WALSegmentSize)
	if err != nil {
		return stage.Permanentf("restore PostgreSQL: the manifest's WAL range: %w: verify the set", err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(r.o.Target, &disk); err != nil {
		return fmt.Errorf("restore PostgreSQL: look at the free space of %s: %w", r.o.Target, err)
	}
	need := r.manifest.size + int64(segments)*p.WALSegmentSize
	if free := int64(disk.Bavail) * disk.Bsize; free < need {
		return stage.Permanentf("restore PostgreSQL: %s has %d MB free, the cluster needs %d MB: choose a larger place", r.o.Target, free>>20, need>>20)
	}
	return nil
}

// targetOwner decides who will own the restored files.
func targetOwner(target string) (account, error) {
	if !asRoot() {
		return account{os.Geteuid(), os.Getegid(), firstOf(accountName(uint32(os.Geteuid())), strconv.Itoa(os.Geteuid()))}, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil {
		return account{}, stage.Permanentf("restore PostgreSQL: look at %s: %w", target, err)
	}
	if st.Uid != 0 {
		return account{int(st.Uid), int(st.Gid), firstOf(accountName(st.Uid), "#"+strconv.Itoa(int(st.Uid)))}, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return account{}, stage.Permanentf("restore PostgreSQL: PostgreSQL cannot run as root and there is no account postgres: give %s to the account that shall run it (chown)", target)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return account{uid, gid, "postgres"}, errors.Join(err1, err2)
}

// unpack runs pgBackRest's restore. Its recovery settings are not used: type
// "none" leaves them to us.
func (r *restoration) unpack(ctx context.Context) error {
	o := r.o
	t := &tool{path: r.path, runner: o.Runner, env: childEnv("")}
	_, have, err := t.version(ctx)
	if err == nil {
		err = checkVersion(have, r.major())
	}
	if err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	r.scratch = filepath.Join(o.Target, ".restore")
	defer os.RemoveAll(r.scratch)
	dirs := []string{r.scratch, r.done.DataDir}
	for _, sub := range []string{"log", "lock", "spool"} {
		dirs = append(dirs, filepath.Join(r.scratch, sub))
	}
	args := []string{"--config=" + filepath.Join(r.scratch, toolConfigName), "--stanza=" + Stanza, "--set=" + o.Part.Label, "--type=none"}
	spaces := filepath.Join(o.Target, "tablespaces")
	if len(r.manifest.tablespaces) > 0 {
		dirs = append(dirs, spaces)
	}
	for id := range r.manifest.tablespaces {
		dirs = append(dirs, filepath.Join(spaces, id))
		args = append(args, "--tablespace-map="+id+"="+filepath.Join(spaces, id))
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("restore PostgreSQL: %w", err)
		}
	}
	conf := fmt.Sprintf("[global]\nrepo1-path=%s\nlog-path=%[2]s/log\nlock-path=%[2]s/lock\nspool-path=%[2]s/spool\nlog-level-console=detail\nlog-level-file=off\nlog-level-stderr=off\nprocess-max=%d\n\n[%s]\npg1-path=%s\n",
		o.Repo, r.scratch, Options{Processes: o.Processes}.processes(), Stanza, r.done.DataDir)
	if err := writeFile(filepath.Join(r.scratch, toolConfigName), []byte(conf), 0o600); err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	o.Progress.Total(r.manifest.size)
	if _, err := t.run(ctx, r.follow, "restore", append(args, "restore")...); err != nil {
		return restoreError(err, o.Target)
	}
	o.Progress.Done(r.manifest.size)
	return nil
}

// follow tells progress from lines such as
// "restore file /x/base/1/2 (bundle 1/0, 8KB, 12.34%) checksum …".
func (r *restoration) follow(line string) {
	_, rest, ok := strings.Cut(line, "restore file ")
	if !ok {
		return
	}
	at := strings.LastIndex(rest, "%)")
	if at < 0 {
		return
	}
	number := rest[:at]
	number = number[strings.LastIndexAny(number, " (")+1:]
	if percent, err := strconv.ParseFloat(number, 64); err == nil && percent >= 0 && percent <= 100 {
		r.o.Progress.Done(int64(float64(r.manifest.size) * percent / 100))
	}
}

func restoreError(err error, target string) error {
	var t *toolError
	if !errors.As(err, &t) {
		return err
	}
	switch {
	case strings.Contains(t.messages, "No space left") || strings.Contains(t.messages, "quota") || t.code == exitWrite:
		return stage.Permanentf("%w: the disk of %s is full: choose a larger one", err, target)
	case t.code == exitFileMissing:
		return stage.Permanentf("%w: the repository is not complete: verify the set", err)
	}
	return stage.Permanentf("%w: verify the set, then restore into an empty directory again", err)
}

// bringWAL decompresses the segments that the backup needs into pg_wal.
func (r *restoration) bringWAL(ctx context.Context) error {
	p := r.o.Part
	names, err := segmentNames(p.StartWAL, p.StopWAL, p.WALSegmentSize)
	if err != nil {
		return stage.Permanentf("restore WAL: %w: verify the set", err)
	}
	found, err := repoSegments(r.o.Repo, p)
	if err != nil {
		return stage.Permanentf("restore WAL: %w: verify the set", err)
	}
	inflate := &decompressor{kind: p.CompressType}
	defer inflate.close()
	dir := filepath.Join(r.done.DataDir, "pg_wal")
	for _, name := range names {
		if stop := ended(ctx, "restore WAL"); stop != nil {
			return stop
		}
		if found[name] == "" {
			return stage.Permanentf("restore WAL: segment %s is not in the repository: verify the set", name)
		}
		if err := expand(inflate, found[name], filepath.Join(dir, name), p.WALSegmentSize); err != nil {
			return fmt.Errorf("restore WAL segment %s: %w", name, noSpace(err))
		}
	}
	return set.SyncDir(dir)
}

func expand(inflate *decompressor, from, to string, size int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	content, err := inflate.open(in, false)
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(content, size+1))
	if err == nil && n != size {
		err = fmt.Errorf("it has not the %d bytes of a segment: verify the set", size)
	}
	return errors.Join(err, out.Sync(), out.Close())
}

// bringConfig puts the configuration that lay outside the data directory into
// Target/config, for people; the restored server does not read it.
func (r *restoration) bringConfig(context.Context) error {
	if len(r.o.Part.Config) == 0 {
		return nil
	}
	dir := filepath.Join(r.o.Target, "config")
	for _, c := range r.o.Part.Config {
		if _, err := configEntry(c.Path); err != nil {
			return stage.Permanentf("restore configuration file %q: %w: verify the set", c.Path, err)
		}
		content, err := readLimited(filepath.Join(r.o.ConfigFrom, c.Path), maxConfigFile)
		if r.o.ConfigFrom == "" || errors.Is(err, fs.ErrNotExist) {
			r.done.note("configuration file %s is in the set but was not unpacked", c.Path)
			continue
		}
		if err != nil {
			return fmt.Errorf("restore configuration file %s: %w", c.Path, err)
		}
		if err := writeFile(filepath.Join(dir, c.Path), content, 0o600); err != nil {
			return fmt.Errorf("restore configuration file %s: %w", c.Path, err)
		}
	}
	r.done.note("the original configuration from outside the data directory is in %s; the restored server does not read it", dir)
	return nil
}

// hand gives everything to the account that will run the server. Links are
// changed themselves, never followed.
func (r *restoration) hand(context.Context) error {
	if !asRoot() {
		return nil
	}
	err := filepath.WalkDir(r.o.Target, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, r.owner.uid, r.owner.gid)
	})
	if err != nil {
		return fmt.Errorf("give the restored files to %s: %w", r.owner.name, err)
	}
	return nil
}
