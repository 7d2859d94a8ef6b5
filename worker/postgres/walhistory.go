package postgres

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"catalog-backup/shared/set"
)

// The server's own history can pass a backup by. Its WAL from the backup's redo point to
// its stop is replayed into every restored server, and all but a few kinds of records only
// change pages and files of the data directory, whose older state the backup holds. What
// was looked at, for PostgreSQL 10 to 18:
//
//   - Tablespace, create: names a directory by its absolute path. Recovery links to it, and
//     where it exists, which it does on the original's host, writes into the original's files.
//     Elsewhere it ends for want of the directory.
//     The backup's own tablespaces are no exception: recovery replaces the link that the
//     restore made.
//   - Tablespace, drop: what is removed lies behind the link that the restore made, or there
//     is none. It spoils nothing by itself; but the set names a tablespace that was no more.
//   - Database, create by copying files (all of them before 15, STRATEGY file_copy after, and
//     ALTER DATABASE … SET TABLESPACE): recovery copies what it finds at that moment: pages of
//     the source as the backup has them, perhaps torn or newer than the copy was. Records for
//     the source do not mend the copy.
//   - Database, create by WAL (from 15): makes a directory of the data directory; its pages
//     are in the WAL. Database, drop: removes directories behind the restore's own links.
//   - A tablespace with an empty path (allow_in_place_tablespaces) stays in the data directory;
//     recovery refuses it unless the setting is on.
//   - XLOG, checkpoint of a shutdown: the server was stopped in mid-backup, and recovery says
//     that the backup was cancelled. Every change that needs a start comes with one: wal_level
//     going to minimal, checksums switched while the server was down, the end of a crash
//     recovery, another timeline.
//   - XLOG, full_page_writes: a running backup forces them on a primary, so a change means nothing.
//   - Resource managers of extensions (from 128) need their library while they are replayed.
//   - Everything else (Heap, Btree, …, Storage, Transaction, RelMap, Sequence, Generic, messages,
//     slots' and origins' positions) reads and writes nothing but the data directory, by pages
//     that are whole in the WAL after the redo point.

// walEvent is a record that the backup cannot bring back as it was.
type walEvent struct {
	at       uint64 // LSN
	kind     eventKind
	oid      uint32 // of the tablespace or database
	location string // of the tablespace made; "" = within the data directory
	source   uint32 // database that was copied
}

type eventKind int

const (
	tablespaceMade eventKind = iota
	tablespaceDropped
	databaseCopied
)

// maxEvents bounds the events that are kept; more are only counted.
const maxEvents = 1000

// walHistory is what the WAL of a backup tells, from its start to its stop.
type walHistory struct {
	start, stop uint64 // LSN
	first       uint64 // number of the first segment
	segments    int
	size        int64 // of a segment

	events   []walEvent
	more     int // events that were not kept
	managers [256]bool
	problem  string // why the restored server would not get to the stop; "" = it does

	waiting map[uint64]*walReader // read, and the one before is not joined yet
	joined  int
	last    uint64     // LSN of the last whole record
	open    *walRecord // goes on in the next segment
	ended   bool       // the record of the backup's end is there

	seen func(*walRecord) // is shown each record; nil = nobody
}

// newWALHistory begins the history of a backup.
func newWALHistory(p *set.Postgres) (*walHistory, error) {
	first, n, err := segmentRange(p.StartWAL, p.StopWAL, p.WALSegmentSize)
	if err != nil {
		return nil, err
	}
	h := &walHistory{first: first.number, segments: n, size: p.WALSegmentSize, waiting: map[uint64]*walReader{}}
	if h.start, err = parseLSN(p.StartLSN); err != nil {
		return nil, err
	}
	if h.stop, err = parseLSN(p.StopLSN); err != nil {
		return nil, err
	}
	low, high := h.first*uint64(h.size), (h.first+uint64(n))*uint64(h.size)
	// A stop at the very end of a segment is named by that segment, or from PostgreSQL 17 by the next one.
	if h.start < low || h.start >= low+uint64(h.size) || h.stop <= h.start || h.stop > high || h.stop < high-uint64(h.size) {
		return nil, fmt.Errorf("%s to %s does not lie in %s to %s", p.StartLSN, p.StopLSN, p.StartWAL, p.StopWAL)
	}
	return h, nil
}

// reader gives the reader of one segment's records.
func (h *walHistory) reader(number uint64) *walReader {
	r := &walReader{history: h, base: number * uint64(h.size)}
	if number == h.first {
		r.from = h.start
	}
	return r
}

// take joins a segment that was read whole, now or when those before it are there.
func (h *walHistory) take(r *walReader) {
	r.history.waiting[r.base/uint64(h.size)] = r
	for {
		next := h.first + uint64(h.joined)
		r, ok := h.waiting[next]
		if !ok {
			return
		}
		delete(h.waiting, next)
		h.join(r)
		h.joined++
	}
}

func (h *walHistory) broken(at uint64, problem string) {
	if h.problem == "" {
		h.problem = fmt.Sprintf("the WAL breaks at %s, before the backup's end at %s: %s", lsnText(at), lsnText(h.stop), problem)
	}
}

// join appends a segment to those before it.
func (h *walHistory) join(r *walReader) {
	if h.problem != "" {
		return
	}
	if h.joined > 0 && !h.joinFragment(r) {
		return
	}
	if r.first != 0 {
		if h.last != 0 && r.prev != h.last {
			h.broken(r.first, fmt.Sprintf("the record there does not follow the one at %s", lsnText(h.last)))
		}
		h.last = r.last
	}
	if r.problem != "" {
		h.broken(r.breakAt, r.problem)
	}
	if r.within {
		h.open = &r.record
	}
}

// joinFragment completes the record that goes on from the segments before, and tells
// whether the segment's own records count.
func (h *walHistory) joinFragment(r *walReader) bool {
	switch {
	case r.lost && r.promised == 0, h.open == nil && r.promised == 0:
		h.open = nil
		return true
	case h.open == nil:
		h.broken(r.base, "a record goes on there that did not begin")
		return false
	case r.promised != h.open.total()-h.open.got:
		h.broken(h.open.at, fmt.Sprintf("the record there does not go on at %s", lsnText(r.base)))
		return false
	}
	record := h.open
	record.addFragment(&r.fragment)
	if r.lost {
		h.open = nil
		return true
	}
	if !record.whole() {
		return r.problem != "" // it goes on in the next segment
	}
	h.open = nil
	if problem := h.judge(record, r.fragmentEnd); problem != "" {
		h.broken(record.at, problem)
		return false
	}
	if h.last != 0 && record.prev() != h.last {
		h.broken(record.at, fmt.Sprintf("the record there does not follow the one at %s", lsnText(h.last)))
		return false
	}
	h.last = record.at
	// Behind a switch the segment is empty.
	return !(record.is(rmXLOG, infoSwitch) && r.nothing)
}

// judge takes a whole record, which ends before the address end, into the history. It
// gives a problem where the record is none, or where recovery would stop at it.
func (h *walHistory) judge(r *walRecord, end uint64) string {
	if !r.right() {
		return "the record there has a wrong checksum"
	}
	if end > h.stop {
		return "the record there goes on beyond the backup's end"
	}
	h.managers[r.manager()] = true
	if h.seen != nil {
		h.seen(r)
	}
	switch r.manager() {
	case rmXLOG:
		return h.control(r, end)
	case rmTablespace:
		return h.tablespace(r)
	case rmDatabase:
		return h.database(r)
	}
	return ""
}

const unknownForm = "the record there has a form that is not known"

// database looks at {database, tablespace, source database, its tablespace}, each u32.
func (h *walHistory) database(r *walRecord) string {
	if r.info() != infoDatabaseCopy {
		return ""
	}
	main, ok := r.main()
	if !ok || len(main) != 16 {
		return unknownForm
	}
	h.event(walEvent{at: r.at, kind: databaseCopied, oid: binary.LittleEndian.Uint32(main), source: binary.LittleEndian.Uint32(main[8:])})
	return ""
}

// control looks at records about the server itself.
func (h *walHistory) control(r *walRecord, end uint64) string {
	switch r.info() {
	case infoShutdown:
		return "the server was stopped there while the backup was made, which cancels it"
	case infoBackupEnd: // {start of the backup u64}
		main, ok := r.main()
		h.ended = h.ended || ok && len(main) == 8 && binary.LittleEndian.Uint64(main) == h.start && end == h.stop
	}
	return ""
}

// tablespace looks at {tablespace u32}, for create followed by the path as a C string.
func (h *walHistory) tablespace(r *walRecord) string {
	main, ok := r.main()
	if !ok || len(main) < 4 {
		return unknownForm
	}
	e := walEvent{at: r.at, kind: tablespaceDropped, oid: binary.LittleEndian.Uint32(main)}
	switch path, rest, ended := bytes.Cut(main[4:], []byte{0}); {
	case r.info() == infoTablespaceDrop:
	case r.info() == infoTablespaceCreate && ended && len(rest) == 0:
		e.kind, e.location = tablespaceMade, string(path)
	default:
		return unknownForm
	}
	h.event(e)
	return ""
}

func (h *walHistory) event(e walEvent) {
	if len(h.events) == maxEvents {
		h.more++
		return
	}
	h.events = append(h.events, e)
}

// finish closes the history. Segments that are not there are for others to report;
// what the rest holds is in the history all the same.
func (h *walHistory) finish() {
	if h.joined == h.segments && !h.ended {
		h.broken(max(h.last, h.start), "no record of the backup's end is there")
	}
	h.waiting, h.open = nil, nil
	slices.SortFunc(h.events, func(a, b walEvent) int { return cmp.Compare(a.at, b.at) })
}

// customManagers are the resource managers of extensions whose records are in the WAL.
func (h *walHistory) customManagers() []int {
	var list []int
	for id := rmCustom; id < len(h.managers); id++ {
		if h.managers[id] {
			list = append(list, id)
		}
	}
	return list
}
