package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"catalog-backup/worker/stage"
)

// readHistory reads the repository's WAL before anything is written, and refuses what
// would let recovery write outside the target.
func (r *restoration) readHistory(ctx context.Context) error {
	p := r.o.Part
	found, err := repoSegments(r.o.Repo, p)
	if err != nil {
		return verifyFirst(err)
	}
	scan, err := newWALScan(p)
	if err != nil {
		return verifyFirst(err)
	}
	defer scan.close()
	names, err := segmentNames(p.StartWAL, p.StopWAL, p.WALSegmentSize)
	if err != nil {
		return verifyFirst(err)
	}
	for _, name := range names {
		if stop := ended(ctx, "read the WAL"); stop != nil {
			return stop
		}
		if found[name] == "" {
			return verifyFirst(fmt.Errorf("segment %s is not in the repository", name))
		}
		if err := scanFile(scan, name, found[name]); err != nil {
			return verifyFirst(fmt.Errorf("read %s: %w", filepath.Base(found[name]), err))
		}
	}
	scan.history.finish()
	r.history = scan.history
	return r.judgeHistory()
}

func scanFile(scan *walScan, name, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return scan.segment(name, file)
}

// resourceManagers are the ids, from 128, of the extensions' resource managers that the
// restored server needs to replay its WAL.
func (r *restoration) resourceManagers() []int { return r.history.customManagers() }

func verifyFirst(err error) error {
	return stage.Permanentf("restore WAL: %w: verify the set", err)
}

// judgeHistory refuses, warns, and says what to do before the start, by what the WAL holds.
//
// Recovery cannot be kept inside the target by us: the path stands in the record, and a
// record with another path is another WAL. An empty path, which PostgreSQL takes for a
// place within the data directory, would fit every record, but only with a developer's
// setting that older minor versions lack, and leaves a tablespace that none of its tools
// supports. So a person makes the place, and only where nothing is in it.
func (r *restoration) judgeHistory() error {
	h := r.history
	if h.problem != "" {
		r.done.warn("%s: the restored server will not reach the backup's end, and not start: restore another set", h.problem)
	}
	if err := h.refusal(); err != nil {
		return err
	}
	told := map[string]bool{}
	for _, e := range h.events {
		switch {
		case e.kind == tablespaceMade && !told[e.location]:
			told[e.location] = true
			r.tablespaceMade(e)
		case e.kind == tablespaceDropped:
			r.done.note("while the backup was made, %s: recovery removes it from the restored server", e.say(""))
		case e.kind == databaseCopied:
			r.done.warn("while the backup was made, %s: pages of the restored copy may be torn, or newer than they were: check it (pg_amcheck, pg_dump to nowhere), or drop it and make it anew", e.say(""))
		}
	}
	return nil
}

// tablespaceMade says how recovery can make a tablespace again without touching anything
// that is there.
func (r *restoration) tablespaceMade(e walEvent) {
	if e.location == "" {
		auto := shellQuote(filepath.Join(r.done.DataDir, "postgresql.auto.conf"))
		r.done.warn("while the backup was made, %s: recovery refuses that without a setting, see the steps before the start", e.say(""))
		r.done.before("allow the tablespace within the data directory: echo \"allow_in_place_tablespaces = on\" >> %s", auto)
		return
	}
	r.done.warn("while the backup was made, %s: recovery makes it there again, outside of the target; see the steps before the start", e.say(""))
	if strings.ContainsFunc(e.location, unicode.IsControl) { // no line to copy
		r.done.before("make the directory %q, which must not be there yet, for uid %d with mode 0700: recovery puts tablespace %d into it", e.location, r.owner.uid, e.oid)
		return
	}
	path := shellQuote(filepath.Clean(e.location))
	command := fmt.Sprintf("mkdir -p %s && mkdir -m 700 %s", shellQuote(filepath.Dir(e.location)), path)
	if asRoot() {
		command += fmt.Sprintf(" && chown %d:%d %s", r.owner.uid, r.owner.gid, path)
	}
	r.done.before("make the empty directory into which recovery puts tablespace %d, as %s with mode 0700: %s (if this says that it exists, another server may own it: do not start this one)", e.oid, r.owner.name, command)
}

// refusal is why a server that makes this tablespace again must not start on this host.
func (e walEvent) refusal() error {
	if e.kind != tablespaceMade || e.location == "" {
		return nil
	}
	if !filepath.IsAbs(e.location) {
		return stage.Permanentf("restore PostgreSQL: while the backup was made, %s, which is no absolute path: restore another set", e.say(""))
	}
	_, err := os.Lstat(e.location)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	why := "which exists on this host"
	if err != nil {
		why = fmt.Sprintf("which cannot be looked at (%v)", err)
	}
	return stage.Permanentf("restore PostgreSQL: while the backup was made, %s, %s: recovery would link the restored server to that directory and write old pages into it, where the original's may live: restore on a host that has no %[3]q, or move it away if no server uses it, or restore another set", e.say(""), why, e.location)
}

// Refusal is why a restore on this host would refuse the backup, by what its WAL tells;
// so that it is known before anything is written. It is asked after Finish.
func (v *Verifier) Refusal() error {
	if v.history == nil {
		return nil
	}
	return v.history.refusal()
}

func (h *walHistory) refusal() error {
	for _, e := range h.events {
		if err := e.refusal(); err != nil {
			return err
		}
	}
	if h.more > 0 {
		return stage.Permanentf("restore PostgreSQL: while the backup was made, %d tablespaces or copied databases came and went, too many to look at each: restore another set", len(h.events)+h.more)
	}
	return nil
}
