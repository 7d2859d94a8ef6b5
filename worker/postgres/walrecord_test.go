package postgres

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/set"
)

// managerNames are the resource managers as pg_waldump names them (src/include/access/rmgrlist.h).
var managerNames = []string{"XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby", "Heap2", "Heap",
	"Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs", "ReplicationOrigin", "Generic", "LogicalMessage"}

// walSample is the WAL of a backup, and what pg_waldump says about it.
type walSample struct {
	part     *set.Postgres
	segments [][]byte
	records  []string // manager, length, transaction, address, the one before
	events   []string
}

var dumped = regexp.MustCompile(`^rmgr: (\w+) +len \(rec/tot\): +\d+/ *(\d+), tx: +(\d+), lsn: (\S+), prev (\S+), desc: (.*)`)

// dump reads pg_waldump's output.
func (s *walSample) dump(t testing.TB, r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<20)
	made := regexp.MustCompile(`^CREATE (\d+) "(.*)"$`)
	for lines.Scan() {
		m := dumped.FindStringSubmatch(lines.Text())
		require.NotNil(t, m, lines.Text())
		s.records = append(s.records, strings.Join([]string{m[1], m[2], m[3], plainLSN(t, m[4]), plainLSN(t, m[5])}, " "))
		desc := m[6]
		switch {
		case m[1] == "Tablespace" && strings.HasPrefix(desc, "DROP "):
			s.events = append(s.events, "dropped "+desc[5:])
		case m[1] == "Tablespace":
			made := made.FindStringSubmatch(desc)
			s.events = append(s.events, fmt.Sprintf("made %s at %s", made[1], made[2]))
		case m[1] == "Database" && strings.Contains(desc, "copy dir"):
			e := regexp.MustCompile(`copy dir (\d+)/(\d+) to (\d+)/(\d+)`).FindStringSubmatch(desc)
			source, target := e[1], e[3] // 15.0 to now: database/tablespace, in which order differs
			if source == "1663" || target == "1663" {
				source, target = e[2], e[4]
			}
			s.events = append(s.events, fmt.Sprintf("copied %s from %s", target, source))
		}
	}
	require.NoError(t, lines.Err())
}

func plainLSN(t testing.TB, text string) string {
	lsn, err := parseLSN(text)
	require.NoError(t, err)
	return lsnText(lsn)
}

// sample17 is the WAL of PostgreSQL 17 in testdata.
func sample17(t testing.TB) *walSample {
	dir := "testdata/wal17/"
	words := strings.Fields(read(t, dir+"range"))
	s := &walSample{part: walPart(t, words[0], words[1], 1<<20, 170000, words[2])}
	wal := unzstd(t, dir+"wal.zst")
	s.segments = slices.Collect(slices.Chunk(wal, 1<<20))
	s.dump(t, strings.NewReader(string(unzstd(t, dir+"records.zst"))))
	return s
}

func walPart(t testing.TB, start, stop string, size int64, version int, systemID string) *set.Postgres {
	from, err := parseLSN(start)
	require.NoError(t, err)
	to, err := parseLSN(stop)
	require.NoError(t, err)
	return &set.Postgres{Stanza: Stanza, Label: "20261123-183800F", StartLSN: start, StopLSN: stop, WALSegmentSize: size, ServerVersionNum: version, SystemIdentifier: systemID, CompressType: "none",
		StartWAL: segment{1, from / uint64(size)}.name(size), StopWAL: segment{1, (to - 1) / uint64(size)}.name(size)}
}

func read(t testing.TB, path string) string {
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(content)
}

func unzstd(t testing.TB, path string) []byte {
	z, err := zstd.NewReader(nil)
	require.NoError(t, err)
	defer z.Close()
	out, err := z.DecodeAll([]byte(read(t, path)), nil)
	require.NoError(t, err)
	return out
}

// sampleHere makes the same on the PostgreSQL of this machine.
func sampleHere(t testing.TB, segmentMB int) *walSample {
	p := lab.Postgres(t, lab.WithInitDB(fmt.Sprintf("--wal-segsize=%d", segmentMB)), lab.WithConf("max_prepared_transactions = 5", "wal_keep_size = 2GB", "autovacuum = off"))
	space, err := p.Mkdir("made here")
	require.NoError(t, err)
	script, err := filepath.Abs("testdata/wal17/workload.sql")
	require.NoError(t, err)
	content := read(t, script)
	cmd := p.Command("psql", "-XAtq", "-v", "space="+space, "-d", "postgres", "-f", "-")
	cmd.Stdin = strings.NewReader(content)
	cmd.Stderr = nil
	out, err := cmd.Output()
	require.NoError(t, err, "%v", err)
	words := strings.Fields(string(out))
	require.Len(t, words, 2)
	number, err := strconv.Atoi(p.Psql("show server_version_num"))
	require.NoError(t, err)
	s := &walSample{part: walPart(t, words[0], words[1], int64(segmentMB)<<20, number, p.Psql("select system_identifier from pg_control_system()"))}
	names, err := segmentNames(s.part.StartWAL, s.part.StopWAL, s.part.WALSegmentSize)
	require.NoError(t, err)
	for _, name := range names {
		s.segments = append(s.segments, []byte(read(t, filepath.Join(p.DataDir, "pg_wal", name))))
	}
	dump := exec.Command(filepath.Join(p.BinDir, "pg_waldump"), "-p", filepath.Join(p.DataDir, "pg_wal"), "-s", words[0], "-e", words[1])
	pipe, err := dump.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, dump.Start())
	s.dump(t, pipe)
	require.NoError(t, dump.Wait())
	return s
}

// scan reads the sample's segments, in pieces of random size and in the order given.
func (s *walSample) scan(t testing.TB, order []int, piece func() int) (*walHistory, []string) {
	h, err := newWALHistory(s.part)
	require.NoError(t, err)
	type line struct {
		at   uint64
		text string
	}
	var lines []line
	h.seen = func(r *walRecord) {
		name := fmt.Sprintf("custom%03d", r.manager())
		if int(r.manager()) < len(managerNames) {
			name = managerNames[r.manager()]
		}
		lines = append(lines, line{r.at, fmt.Sprintf("%s %d %d %s %s", name, r.total(), uint32(r.head[4])|uint32(r.head[5])<<8|uint32(r.head[6])<<16|uint32(r.head[7])<<24, lsnText(r.at), lsnText(r.prev()))})
	}
	for _, i := range order {
		seg := segment{1, h.first + uint64(i)}
		c := checkerOf(s.part, seg)
		c.records = h.reader(seg.number)
		for rest := s.segments[i]; len(rest) > 0; {
			n := min(piece(), len(rest))
			_, _ = c.Write(rest[:n])
			rest = rest[n:]
		}
		require.Empty(t, c.problem)
		h.take(c.records)
	}
	h.finish()
	slices.SortFunc(lines, func(a, b line) int { return int(int64(a.at) - int64(b.at)) })
	var out []string
	for _, l := range lines {
		out = append(out, l.text)
	}
	return h, out
}

func (h *walHistory) eventTexts() []string {
	var out []string
	for _, e := range h.events {
		switch e.kind {
		case tablespaceMade:
			out = append(out, fmt.Sprintf("made %d at %s", e.oid, e.location))
		case tablespaceDropped:
			out = append(out, fmt.Sprintf("dropped %d", e.oid))
		case databaseCopied:
			out = append(out, fmt.Sprintf("copied %d from %d", e.oid, e.source))
		}
	}
	return out
}

func orderOf(n int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	return order
}

// TestWALRecordsAreThoseOfWaldump compares every record with PostgreSQL's own tool, on the
// server of this machine with small and usual segments, and on PostgreSQL 17.
func TestWALRecordsAreThoseOfWaldump(t *testing.T) {
	for name, make := range map[string]func() *walSample{
		"1 MB":  func() *walSample { return sampleHere(t, 1) },
		"16 MB": func() *walSample { return sampleHere(t, 16) },
		"17":    func() *walSample { return sample17(t) },
	} {
		t.Run(name, func(t *testing.T) {
			s := make()
			require.Greater(t, len(s.records), 10000)
			require.Len(t, s.events, 8)
			order := orderOf(len(s.segments))
			h, records := s.scan(t, order, func() int { return 1 << 30 })
			require.Empty(t, h.problem)
			require.Equal(t, s.events, h.eventTexts())
			same(t, s.records, records)
			require.Empty(t, h.customManagers())

			random := rand.New(rand.NewPCG(7, 11))
			random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			h, records = s.scan(t, order, func() int { return 1 + random.IntN(3000) })
			require.Empty(t, h.problem)
			require.Equal(t, s.events, h.eventTexts())
			same(t, s.records, records)
		})
	}
}

// same is Equal without the minutes that it takes to print two long lists.
func same(t testing.TB, want, got []string) {
	t.Helper()
	for i := range min(len(want), len(got)) {
		require.Equal(t, want[i], got[i], "record %d", i)
	}
	require.Equal(t, len(want), len(got))
}
