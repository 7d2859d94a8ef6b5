package set

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

var proofTime = time.Date(2021, 9, 24, 1, 0, 0, 0, time.UTC)

func TestProofsAreAdded(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, AddProof(dir, id, Proof{Kind: "verify", At: proofTime, Good: true}))
	require.NoError(t, AddProof(dir, id, Proof{Kind: "verify", At: proofTime.Add(time.Hour), Damage: []Damage{{Part: "files", Entry: "x", Problem: "gone"}}}))
	p, err := ReadProofs(dir, id)
	require.NoError(t, err)
	require.Len(t, p.Proofs, 2)
	fi, err := os.Stat(filepath.Join(dir, id.ProofName()))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), fi.Mode().Perm())
	s := sample().Summary(dir)
	require.Equal(t, &Proof{Kind: "verify", At: proofTime.Add(time.Hour), Damage: []Damage{{Part: "files", Entry: "x", Problem: "gone"}}, DamageTotal: 1}, s.Proof, "the finding is in the list")
	require.Nil(t, s.DoubtedBy)

	require.NoError(t, AddProof(dir, id, Proof{Kind: "verify", At: proofTime.Add(2 * time.Hour), Good: true}))
	s = sample().Summary(dir)
	require.True(t, s.Proof.Good)
	require.Zero(t, s.Proof.DamageTotal)
	require.Equal(t, "gone", s.DoubtedBy.Damage[0].Problem, "and stays there when a later proof is good")
}

// However much was found, and however an entry is called: the list of sets, which goes
// into Redis each minute, stays small, is printable, and says how much there is.
func TestManyFindingsAreListedInShort(t *testing.T) {
	dir := t.TempDir()
	p := Proof{Kind: "verify", At: proofTime, DamageTotal: 70_000}
	one := Damage{Entry: "files/\x1b[2J\xff\u202e" + strings.Repeat("ü", 5000), Problem: "torn\n" + strings.Repeat("y", 1<<20)}
	for range 1000 {
		p.Damage = append(p.Damage, one)
	}
	require.NoError(t, AddProof(dir, id, p))
	kept, err := ReadProofs(dir, id)
	require.NoError(t, err)
	require.Len(t, kept.Proofs[0].Damage, provenDamage)
	require.Equal(t, 70_000, kept.Proofs[0].DamageTotal)
	m := sample()
	for range 1000 {
		m.Warnings = append(m.Warnings, "changed: "+one.Entry)
	}
	s := m.Summary(dir)
	require.Equal(t, "and 950 more: the manifest has them", s.Warnings[len(s.Warnings)-1])
	require.Len(t, s.Proof.Damage, listedDamage)
	require.Equal(t, 70_000, s.Proof.Findings())
	b, err := json.Marshal(s)
	require.NoError(t, err)
	require.Less(t, len(b), 250_000)
	require.True(t, utf8.Valid(b))
	require.True(t, strings.HasPrefix(s.Proof.Damage[0].Entry, `files/\x1b[2J\xff\u202eü`), s.Proof.Damage[0].Entry)
	require.True(t, strings.HasSuffix(s.Proof.Damage[0].Entry, "…"))
	require.True(t, strings.HasPrefix(s.Proof.Damage[0].Problem, `torn\nyyy`))
}

// A proof of an earlier version has no count; it may be one that was cut at 100.
func TestProofOfAnEarlierVersion(t *testing.T) {
	dir := t.TempDir()
	text := `{"format":"catalog-backup/proof","version":1,"set":"` + string(id) + `","proofs":[{"kind":"verify","at":"2021-09-24T01:00:00Z","good":false,"damage":[{"entry":"a","problem":"b"},{"entry":"c","problem":"d"}]}]}`
	require.NoError(t, os.WriteFile(filepath.Join(dir, id.ProofName()), []byte(text), 0o600))
	s := sample().Summary(dir)
	require.Equal(t, []Damage{{Entry: "a", Problem: "b"}, {Entry: "c", Problem: "d"}}, s.Proof.Damage)
	require.Equal(t, 2, s.Proof.Findings())
	require.Empty(t, s.ProofProblem)
}

// A damaged file of proofs is said, and what can be read of it counts and is kept.
func TestDamagedProofs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, id.ProofName())
	text, err := json.Marshal(sample())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, id.ManifestName()), text, 0o600))
	require.NoError(t, AddProof(dir, id, Proof{Kind: "verify", At: proofTime, Damage: []Damage{{Entry: "x", Problem: "gone"}}}))
	require.NoError(t, AddProof(dir, id, Proof{Kind: "verify", At: proofTime.Add(time.Hour), Good: true}))
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, damaged := range map[string]string{
		"cut":             string(whole[:len(whole)-30]),
		"of another set":  strings.Replace(string(whole), string(id), "202001010101_1", 1),
		"no JSON":         "\x00\x00",
		"another form":    "[]",
		"no list":         `{"proofs": 7}`,
		"an odd proof":    strings.Replace(string(whole), `"good": true`, `"good": "yes"`, 1),
		"more than it is": "",
	} {
		require.NoError(t, os.WriteFile(path, []byte(damaged), 0o600))
		l, err := List(dir)
		require.NoError(t, err)
		require.Len(t, l.Problems, 1, name)
		require.Contains(t, l.Problems[0], id.ProofName())
		require.Contains(t, l.Sets[0].ProofProblem, "damaged", name)
		if name == "cut" || name == "an odd proof" {
			require.Equal(t, "gone", l.Sets[0].Proof.Damage[0].Problem, name)
		}
	}
	require.NoError(t, os.WriteFile(path, whole[:len(whole)-30], 0o600))
	require.NoError(t, AddProof(dir, id, Proof{Kind: "verify", At: proofTime.Add(2 * time.Hour), Good: true}))
	l, err := List(dir)
	require.NoError(t, err)
	require.Empty(t, l.Problems)
	require.Equal(t, "gone", l.Sets[0].DoubtedBy.Damage[0].Problem)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700))
	require.Contains(t, sample().Summary(dir).ProofProblem, "no file of proofs")
}

// The archives of a set whose manifest is damaged are no foreign files.
func TestDamagedManifestIsAProblemAndItsFilesAreOurs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range id.Names() {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600))
	}
	l, err := List(dir)
	require.NoError(t, err)
	require.Empty(t, l.Foreign)
	require.Empty(t, l.Sets)
	require.Len(t, l.Problems, 1)
	require.Contains(t, l.Problems[0], id.ManifestName())
}
