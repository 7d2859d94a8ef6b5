package set

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const id = ID("202109232027_10-0-0-147420")

func TestNamesAreTheDocumentedOnes(t *testing.T) {
	at := time.Date(2021, 9, 23, 22, 27, 59, 0, time.FixedZone("CEST", 7200))
	require.Equal(t, id, NewID(at, "10.0.0.147420"))
	require.Equal(t, "202109232027_10-0-0-147420_alation_backup.tar.gz", id.MainName())
	require.Equal(t, "202109232027_10-0-0-147420_alation_eb_backup.tar.gz", id.EventBusName())
	require.Equal(t, "202109232027_10-0-0-147420_alation_backup.json", id.ManifestName())
	require.Equal(t, "202109232027_10-0-0-147420_alation_backup.proof.json", id.ProofName())
	for _, n := range id.Names() {
		got, ok := IDOfName(n)
		require.True(t, ok, n)
		require.Equal(t, id, got)
	}
	require.Equal(t, at.UTC().Truncate(time.Minute), id.Minute())
}

func TestForeignNamesAreNoIDs(t *testing.T) {
	for _, s := range []string{"", "202109232027", "202113232027_1", "20210923202_1", "202109232027_../x", "202109232027_1_2", "202109232027_1--2", "202109232027_1\n"} {
		_, err := ParseID(s)
		require.Error(t, err, "%q", s)
	}
	for _, n := range []string{"x_alation_backup.tar.gz", "202109232027_10-0-0-147420_alation_backup.tar", ".202109232027_1_alation_backup.tar.gz.r.1.part"} {
		_, ok := IDOfName(n)
		require.False(t, ok, n)
	}
}

func sample() *Manifest {
	return &Manifest{Format: FormatName, Version: FormatVersion, Set: string(id), Run: "r", Instance: "catalog", Type: Full,
		Finished: time.Date(2021, 9, 23, 20, 30, 0, 0, time.UTC), Archives: []Archive{{Kind: MainArchive, Name: id.MainName(), Size: 4}},
		Warnings: []string{}, Notes: []string{}, Files: &Files{Paths: []string{"/a"}, Exclude: []string{}, Entries: []File{}}}
}

func lines(files ...File) func() ([]byte, error) {
	return func() ([]byte, error) {
		if len(files) == 0 {
			return nil, io.EOF
		}
		b, err := json.Marshal(files[0])
		files = files[1:]
		return b, err
	}
}

func TestManifestIsWrittenAsAStreamAndRead(t *testing.T) {
	for n := range 3 {
		m := sample()
		files := []File{{Path: "/a/[]", Kind: "file", Size: 3, SHA256: "x"}, {Path: "/a/b", Kind: "dir"}}[:n]
		var b bytes.Buffer
		require.NoError(t, WriteManifest(&b, m, lines(files...)))
		got, err := DecodeManifest(bytes.NewReader(b.Bytes()), "test")
		require.NoError(t, err)
		m.Files.Entries = files
		require.Equal(t, m, got)
		path := filepath.Join(t.TempDir(), id.ManifestName())
		require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
		head, err := ReadHead(path)
		require.NoError(t, err)
		require.Empty(t, head.Files.Entries)
		require.Equal(t, []string{"/a"}, head.Files.Paths)
		require.Equal(t, m.Archives, head.Archives)
	}
	m := sample()
	m.Files.Entries = []File{{}}
	require.Error(t, WriteManifest(io.Discard, m, lines()))
	m = sample()
	require.ErrorContains(t, WriteManifest(io.Discard, m, func() ([]byte, error) { return nil, errors.New("disk") }), "disk")
}

// The head of a long manifest is read without its list; a cut one is refused all the same.
func TestHeadOfALongManifest(t *testing.T) {
	files := make([]File, 5000)
	for i := range files {
		files[i] = File{Path: `/a/"entries": [`, Kind: "file"}
	}
	var b bytes.Buffer
	require.NoError(t, WriteManifest(&b, sample(), lines(files...)))
	path := filepath.Join(t.TempDir(), id.ManifestName())
	require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
	head, err := ReadHead(path)
	require.NoError(t, err)
	require.Equal(t, []string{"/a"}, head.Files.Paths)
	for _, cut := range []int{1, 3, 10, 1000, b.Len() - 100} {
		require.NoError(t, os.WriteFile(path, b.Bytes()[:b.Len()-cut], 0o600))
		_, err = ReadHead(path)
		if cut > 1 { // the last byte is only a newline
			require.ErrorContains(t, err, "damaged", "cut %d", cut)
		}
	}
}

func TestDamagedAndUnknownManifestsAreRefused(t *testing.T) {
	good, err := json.Marshal(sample())
	require.NoError(t, err)
	for want, change := range map[string]func(string) string{
		"damaged":          func(s string) string { return s[:len(s)/2] },
		"unknown manifest": func(s string) string { return strings.Replace(s, `"version":1`, `"version":2`, 1) },
		"no manifest of a": func(s string) string { return strings.Replace(s, FormatName, "another", 1) },
		"not a set id":     func(s string) string { return strings.Replace(s, string(id), "x", 1) },
		"no archive of":    func(s string) string { return strings.Replace(s, id.MainName(), "../../etc/passwd", 1) },
		"of unknown kind":  func(s string) string { return strings.Replace(s, `"kind":"main"`, `"kind":"what"`, 1) },
		"no instructions of": func(string) string {
			m := sample()
			m.Instructions = []Instruction{{Name: "../../etc/passwd", Entry: ScriptEntry}}
			b, _ := json.Marshal(m)
			return string(b)
		},
		"it names no archiv": func(s string) string { m := sample(); m.Archives = nil; b, _ := json.Marshal(m); return string(b) },
	} {
		_, err := DecodeManifest(strings.NewReader(change(string(good))), "test")
		require.ErrorContains(t, err, want)
	}
	_, err = DecodeManifest(strings.NewReader(strings.Replace(string(good), `"version":1`, `"version":99`, 1)), "test")
	require.ErrorIs(t, err, ErrUnknownVersion)
}

// The instructions are of the set as the archives are; a set of earlier versions has none.
func TestInstructionsAreOfTheSet(t *testing.T) {
	dir := t.TempDir()
	m := sample()
	require.NoError(t, os.WriteFile(filepath.Join(dir, id.MainName()), []byte("four"), 0o600))
	require.Empty(t, m.Summary(dir).Missing)
	m.Instructions = []Instruction{{Name: id.TextName(), Entry: TextEntry, Size: 3}, {Name: id.ScriptName(), Entry: ScriptEntry, Size: 5}}
	require.Equal(t, []string{id.TextName(), id.ScriptName()}, m.Summary(dir).Missing)
	require.Equal(t, int64(12), m.Size())
	require.NoError(t, os.WriteFile(filepath.Join(dir, id.TextName()), []byte("abc"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, id.ScriptName()), []byte("longer"), 0o600))
	require.Equal(t, []string{id.ScriptName()}, m.Summary(dir).Missing)
	text, err := json.Marshal(m)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, id.ManifestName()), text, 0o600))
	l, err := List(dir)
	require.NoError(t, err)
	require.Empty(t, l.Foreign)
}

func TestListTellsOursFromForeign(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	b, err := json.Marshal(sample())
	require.NoError(t, err)
	write(id.ManifestName(), string(b))
	write(id.MainName(), "four")
	write("202001010101_1_alation_backup.tar.gz", "the catalog's own")
	write("202001010102_1_alation_backup.json", "{")
	l, err := List(dir)
	require.NoError(t, err)
	require.Len(t, l.Sets, 1)
	require.Empty(t, l.Sets[0].Missing)
	require.Equal(t, []string{"202001010101_1_alation_backup.tar.gz"}, l.Foreign)
	require.Len(t, l.Problems, 1)
	write(id.MainName(), "short"[:2])
	l, err = List(dir)
	require.NoError(t, err)
	require.Equal(t, []string{id.MainName()}, l.Sets[0].Missing)
	_, err = List(filepath.Join(dir, "none"))
	require.Error(t, err)
}
