package restore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/set"
)

// opened finds a set, and gives the parts that nothing forbids to restore.
func opened(t testing.TB, what, dir string) (*Set, *Report, []string) {
	t.Helper()
	s, err := Open(t.Context(), what, dir)
	require.NoError(t, err)
	r, err := Verify(t.Context(), s, VerifyOptions{})
	require.NoError(t, err)
	_, _, whole := judge(r.Damage, s.Manifest.Parts())
	return s, r, whole
}

// An archive of another set under the name of the one that is asked for is not that one.
func TestArchiveUnderAnotherSetsName(t *testing.T) {
	dir, _ := source.copyOf(t)
	require.NoError(t, os.Remove(source.manifest(dir)))
	from, other := smallSet(t)
	id := set.ID(other.Set)
	main := filepath.Join(dir, id.MainName())
	require.NoError(t, os.Rename(filepath.Join(dir, source.id().MainName()), main))
	out, _, code := source.run(t, "verify", other.Set, "--dir", dir)
	require.Equal(t, 8, code)
	require.Contains(t, out, "an archive of set "+source.set)
	require.Contains(t, out, "no proof was written")
	require.NoFileExists(t, filepath.Join(dir, source.id().ProofName()), "whose own files may be whole")
	for _, what := range []string{other.Set, main} {
		_, errs, code := source.run(t, "restore", what, "--dir", dir, "--only", "files", "--target", dir+"/new")
		require.Equal(t, 8, code)
		require.Contains(t, errs, "an archive of set "+source.set)
		require.NoDirExists(t, dir+"/new")
	}

	bus, err := os.ReadFile(filepath.Join(filepath.Dir(from), id.EventBusName()))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, id.EventBusName()), bus, 0o600))
	s, _, whole := opened(t, other.Set, dir)
	require.Equal(t, id, s.ID())
	require.Equal(t, []string{EventBusPart}, whole)

	own := filepath.Join(dir, "main.tar.gz")
	require.NoError(t, os.Rename(main, own))
	_, r, whole := opened(t, own, "")
	require.Empty(t, r.Damage)
	require.Contains(t, whole, PostgresPart)
}

// Where the manifest is another set's, damaged or lost, and the copy in an archive too,
// there is still that of another archive.
func TestCopyOfTheManifestThatCanBeUsed(t *testing.T) {
	dir, _ := source.copyOf(t)
	from, _ := smallSet(t)
	text, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(source.manifest(dir), text, 0o600))
	main := filepath.Join(dir, source.id().MainName())
	_, r, whole := opened(t, source.set, dir)
	require.Empty(t, whole)
	require.Contains(t, r.Damage[0].Problem, "give the path of an archive")
	s, err := Open(t.Context(), source.set, dir)
	require.NoError(t, err)
	s.Prove(r, time.Unix(0, 0))
	proofs, err := filepath.Glob(dir + "/*.proof.json")
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(dir, source.id().ProofName())}, proofs, "and of no other set")
	s, r, _ = opened(t, main, "")
	require.Equal(t, source.id(), s.ID())
	require.Equal(t, s.manifest, r.Damage, "a verification tells of the manifest, and finds nothing else")
	v := source.restore(t, main, "--only", "files", "--target", scratch(t)+"/new")
	require.Contains(t, strings.Join(v.Notes, "\n"), "is of another set, ")

	require.NoError(t, os.Remove(source.manifest(dir)))
	st, err := os.Stat(main)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(main, st.Size()-20_000))
	for _, what := range []string{source.set, main} {
		s, _, whole := opened(t, what, dir)
		require.Equal(t, source.id(), s.ID())
		require.Contains(t, strings.Join(s.Notes, "\n"), "has no copy of the manifest that can be used: that in "+source.id().EventBusName())
		require.Contains(t, whole, EventBusPart)
		require.NotContains(t, whole, FilesPart)
	}
	require.NoError(t, os.Remove(filepath.Join(dir, source.id().EventBusName())))
	_, err = Open(t.Context(), source.set, dir)
	require.ErrorContains(t, err, "bring the manifest or the set's other archive")
}
