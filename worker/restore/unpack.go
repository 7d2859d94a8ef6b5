package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
)

// place is where the entries under a prefix go.
type place struct {
	part   string // of the set; "" for staging, which completes no part
	prefix string // of the entries
	dir    string
	strip  string
	owner  *archive.Owner // nil: as in the archive
	// originals: the entries are somebody else's files, by their absolute paths.
	originals bool
	x         *archive.Extractor
}

// places are where the entries of an archive of this kind go, as far as they are wanted.
func (j *job) places(kind string) []*place {
	mine := &archive.Owner{UID: os.Geteuid(), GID: os.Getegid()}
	at := func(prefix, dir, strip string, owner *archive.Owner) *place {
		return &place{prefix: prefix, dir: filepath.Join(j.o.Target, dir), strip: strip, owner: owner}
	}
	var out []*place
	if kind == set.MainArchive && j.wants(PostgresPart) {
		out = append(out, at(set.PostgresRepo, stagingName+"/repo", set.PostgresRepo, mine), at(set.PostgresConfig, stagingName+"/config", set.PostgresConfig, mine))
	}
	if kind == set.MainArchive && j.wants(FilesPart) {
		p := at(set.FilesPrefix, "files", set.FilesPrefix, nil)
		p.part, p.originals = FilesPart, true
		out = append(out, p)
	}
	if kind == set.EventBusArchive {
		p := at(set.EventBusPrefix, "eventbus", "eventbus", mine)
		p.part = EventBusPart
		out = append(out, p)
	}
	return out
}

// unpack extracts the archives, one after the other.
func (j *job) unpack(ctx context.Context) error {
	var total int64
	for _, kind := range j.kinds() {
		total += j.sums[kind].Size
	}
	p := j.o.Phase("unpack")
	p.Total(total)
	for _, kind := range j.kinds() {
		places := j.places(kind)
		for _, x := range places {
			if err := j.mkdir(x.dir, 0o700); err != nil {
				return err
			}
			o := archive.ExtractOptions{Strip: strings.TrimSuffix(x.strip, "/"), Owner: x.owner}
			if x.originals {
				o.ThroughLinks, o.Unnamed = true, likeHere
			}
			var err error
			if x.x, err = archive.NewExtractor(x.dir, o); err != nil {
				return err
			}
			defer x.x.Close()
		}
		if err := j.extract(ctx, kind, places, guarded{ctx: ctx, progress: p, told: new(int64)}); err != nil {
			return err
		}
		for _, x := range places {
			found, err := x.x.Finish()
			if err != nil {
				return err
			}
			j.result.Notes = append(j.result.Notes, found.Notes...)
			j.result.Warnings = append(j.result.Warnings, found.Warnings...)
			if x.part != "" {
				j.done = append(j.done, x.part)
			}
		}
	}
	return nil
}

// likeHere describes a directory that a set does not: sets of earlier versions have
// none of those above the configured paths. What this host has at that path is the best
// guess, and does no harm when the files are copied there; else anybody may pass.
func likeHere(path string) *archive.Header {
	var st unix.Stat_t
	if err := unix.Lstat("/"+path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return &archive.Header{Mode: 0o755, UID: os.Geteuid(), GID: os.Getegid()}
	}
	return &archive.Header{Mode: int64(st.Mode & 0o7777), UID: int(st.Uid), GID: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix())}
}

// extract makes files of one archive's entries. The archive must still be what was
// verified.
func (j *job) extract(ctx context.Context, kind string, places []*place, body guarded) error {
	r, err := archive.OpenSalvage(j.s.paths[kind], salvage(kind, nil)) // as it was verified
	if err != nil {
		return err
	}
	defer r.Close()
	body.r = r
	for {
		if err := ended(ctx); err != nil {
			return err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, x := range places {
			if !under(h.Name, x.prefix) {
				continue
			}
			if err := x.x.Entry(h, body); err != nil {
				return err
			}
		}
		body.tell()
	}
	sum, err := r.Finish()
	if err != nil {
		return err
	}
	if sum != j.sums[kind] {
		return fmt.Errorf("archive %s changed while it was restored: its SHA-256 is %s now, and was %s when it was verified", j.s.paths[kind], sum.SHA256, j.sums[kind].SHA256)
	}
	return nil
}
