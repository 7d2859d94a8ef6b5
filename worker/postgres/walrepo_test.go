package postgres

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/set"
)

// stored puts the sample's segments into a repository, as pgBackRest does without compression.
func (s *walSample) stored(t testing.TB) (repo string) {
	repo = place(t)
	for i, content := range s.segments {
		name := segment{1, mustSegment(t, s.part.StartWAL, s.part.WALSegmentSize) + uint64(i)}.name(s.part.WALSegmentSize)
		rel := fmt.Sprintf("archive/%s/15-1/%s/%s-%x", Stanza, name[:16], name, sha1.Sum(content))
		require.NoError(t, os.MkdirAll(filepath.Join(repo, filepath.Dir(rel)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(repo, rel), content, 0o644))
		s.part.WAL = append(s.part.WAL, set.WALFile{Name: name, Path: rel, Size: int64(len(content)), SHA256: fmt.Sprintf("%x", sha256.Sum256(content))})
	}
	return repo
}

func mustSegment(t testing.TB, name string, size int64) uint64 {
	s, err := parseSegment(name, size)
	require.NoError(t, err)
	return s.number
}

// ofAnExtension is WAL that an extension's resource manager had a part in.
func ofAnExtension(t testing.TB, more func(*walBuilder)) *walSample {
	b := newBuilder(8192, 1<<20)
	b.add(rmCustom+22, 0, []byte("of an extension"))
	b.add(rmMessage, 0, make([]byte, 3<<20/2))
	more(b)
	b.add(rmCustom, 0, nil)
	return b.end(t)
}

func TestRestoreReadsTheWALBeforeItWrites(t *testing.T) {
	here := place(t)
	nowhere := "/nowhere/that\nexists"
	for name, c := range map[string]struct {
		more                   func(*walBuilder)
		spoil                  func(path string)
		refused, warned, first string
	}{
		"good":         {},
		"exists":       {more: func(b *walBuilder) { b.add(rmTablespace, infoTablespaceCreate, tablespaceData(7, here)) }, refused: "exists on this host"},
		"not absolute": {more: func(b *walBuilder) { b.add(rmTablespace, infoTablespaceCreate, tablespaceData(7, "../x")) }, refused: "no absolute path"},
		"below a file": {more: func(b *walBuilder) { b.add(rmTablespace, infoTablespaceCreate, tablespaceData(7, "/etc/passwd/x")) }, refused: "cannot be looked at"},
		"is not there": {more: func(b *walBuilder) { b.add(rmTablespace, infoTablespaceCreate, tablespaceData(7, "/nowhere/x")) }, warned: "outside of the target", first: "mkdir -p /nowhere && mkdir -m 700 /nowhere/x && chown "},
		"odd name":     {more: func(b *walBuilder) { b.add(rmTablespace, infoTablespaceCreate, tablespaceData(7, nowhere)) }, warned: "outside of the target", first: fmt.Sprintf("%q", nowhere)},
		"unknown form": {more: func(b *walBuilder) { b.add(rmTablespace, infoTablespaceCreate, []byte{1, 2, 3}) }, warned: "a form that is not known"},
		"stopped":      {more: func(b *walBuilder) { b.add(rmXLOG, infoShutdown, make([]byte, 80)) }, warned: "the server was stopped there"},
		"too many": {more: func(b *walBuilder) {
			for range maxEvents + 1 {
				b.add(rmDatabase, infoDatabaseCopy, make([]byte, 16))
			}
		}, refused: "1001 tablespaces or copied databases"},
		"another start": {more: func(b *walBuilder) { b.add(rmXLOG, infoBackupEnd, make([]byte, 8)) }},
		"removed":       {spoil: func(path string) { require.NoError(t, os.Remove(path)) }, refused: "is not in the repository"},
		"cut":           {spoil: func(path string) { require.NoError(t, os.Truncate(path, 900000)) }, refused: "has not the 1048576 bytes"},
		"swapped": {spoil: func(path string) {
			content := []byte(read(t, path))
			require.NoError(t, os.WriteFile(path, append(content[:8192:8192], content[16384:]...), 0o600))
			require.NoError(t, os.Truncate(path, 1<<20))
		}, refused: "page at byte 8192"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.more == nil {
				c.more = func(*walBuilder) {}
			}
			s := ofAnExtension(t, c.more)
			repo := s.stored(t)
			if c.spoil != nil {
				c.spoil(filepath.Join(repo, s.part.WAL[1].Path))
			}
			r := &restoration{o: RestoreOptions{Part: s.part, Repo: repo, Target: "/target"}, done: &Restored{DataDir: "/target/data"}}
			err := r.readHistory(t.Context())
			if c.refused != "" {
				permanentWith(t, err, c.refused)
				return
			}
			require.NoError(t, err)
			if c.warned != "" {
				require.Len(t, r.done.Warnings, 1)
				require.Contains(t, r.done.Warnings[0], c.warned)
			} else {
				require.Empty(t, r.done.Warnings)
				require.Equal(t, []int{128, 150}, r.resourceManagers())
			}
			require.Contains(t, strings.Join(r.done.Before, "\n"), c.first)
			require.NotContains(t, strings.Join(append(r.done.Before, r.done.Warnings...), ""), "\n")
		})
	}
}

// TestVerifierReadsTheWALInAnyOrder also for a manifest of before.
func TestVerifierReadsTheWALInAnyOrder(t *testing.T) {
	s := ofAnExtension(t, func(b *walBuilder) { b.add(rmTablespace, infoTablespaceCreate, tablespaceData(7, "/x")) })
	s.stored(t)
	told := func(order []int, spoil bool) (said []string) {
		v := NewVerifier(s.part, func(d set.Damage) {
			if strings.Contains(d.Entry, "/archive") && !strings.HasSuffix(d.Entry, ".info") && !strings.HasSuffix(d.Entry, ".copy") {
				said = append(said, fmt.Sprintf("%v: %s: %s", d.Restorable, d.Entry, d.Problem))
			}
		})
		for _, i := range order {
			content := bytes.Clone(s.segments[i])
			if spoil && i == 0 {
				content[5000] ^= 1
			}
			require.NoError(t, v.Entry(set.PostgresRepo+s.part.WAL[i].Path, int64(len(content)), bytes.NewReader(content)))
		}
		require.NoError(t, v.Finish())
		return said
	}
	for _, order := range permutations(2) {
		said := told(order, false)
		require.Len(t, said, 1)
		require.Contains(t, said[0], "true: "+set.PostgresRepo+s.part.WAL[1].Path)
		require.Contains(t, said[0], `tablespace 7 was made at "/x"`)
		// Damage is told as damage; what the rest holds is told too.
		said = told(order, true)
		require.Len(t, said, 3)
		require.Contains(t, strings.Join(said, "\n"), "checksum in its name")
		require.Contains(t, strings.Join(said, "\n"), `made at "/x"`)
	}
	s.part.WALResourceManagers = []int{128}
	said := told([]int{0, 1}, false)
	require.Len(t, said, 2)
	require.Contains(t, said[1], "false: ")
	require.Contains(t, said[1], "needs the resource managers [128 150]")
	s.part.WALResourceManagers = []int{128, 150}
	require.Len(t, told([]int{0, 1}, false), 1)
	s.part.StopLSN = "0/1"
	require.Contains(t, strings.Join(told([]int{0, 1}, false), "\n"), "0/1 does not lie in")
}
