package restore

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/set"
)

// A script that somebody runs as root is the one that was made, or a finding; a restore
// by this program goes on without it.
func TestInstructionsBesideTheSet(t *testing.T) {
	id := source.id()
	for name, c := range map[string]struct {
		change func(t *testing.T, dir string)
		says   []string
	}{
		"script altered": {func(t *testing.T, dir string) {
			path := filepath.Join(dir, id.ScriptName())
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			content[len(content)-2] ^= 1
			require.NoError(t, os.WriteFile(path, content, 0o600))
		}, []string{"its SHA-256 is", "do not use it"}},
		"script longer": {func(t *testing.T, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, id.ScriptName()), os.O_APPEND|os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteString("rm -rf /\n")
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}, []string{"the manifest says"}},
		"script a link": {func(t *testing.T, dir string) {
			path := filepath.Join(dir, id.ScriptName())
			require.NoError(t, os.Rename(path, path+".real"))
			require.NoError(t, os.Symlink(path+".real", path))
		}, []string{"no regular file"}},
		"text missing": {func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, id.TextName())))
		}, []string{"the file is missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, m := source.copyOf(t)
			require.Len(t, m.Instructions, 2)
			c.change(t, dir)
			r := verified(t, source.manifest(dir))
			require.Len(t, r.Damage, 1, "%v", r.Damage)
			d := r.Damage[0]
			require.True(t, d.Restorable)
			require.Empty(t, d.Part)
			for _, want := range c.says {
				require.Contains(t, d.Problem, want)
			}
			source.restore(t, source.manifest(dir), "--only", "files", "--target", filepath.Join(scratch(t), "new"))
			// The remedy that is named works.
			_, remedy, ok := strings.Cut(d.Problem, "again: ")
			require.True(t, ok)
			require.NoError(t, os.RemoveAll(filepath.Join(dir, d.Entry)))
			cmd := exec.Command("sh", "-c", remedy)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Empty(t, verified(t, source.manifest(dir)).Damage)
		})
	}
}

// The copies in the main archive are the same, byte for byte, and looked at too.
func TestInstructionsInTheArchive(t *testing.T) {
	list := items(t, filepath.Join(source.dump, source.id().MainName()))
	at := func(l []item, entry string) int {
		return slices.IndexFunc(l, func(x item) bool { return x.h.Name == entry })
	}
	require.Equal(t, []string{set.TextEntry, set.ScriptEntry, set.ManifestCopy}, []string{list[len(list)-3].h.Name, list[len(list)-2].h.Name, list[len(list)-1].h.Name})
	for entry, name := range map[string]string{set.TextEntry: source.id().TextName(), set.ScriptEntry: source.id().ScriptName()} {
		content, err := os.ReadFile(filepath.Join(source.dump, name))
		require.NoError(t, err)
		require.Equal(t, string(content), string(list[at(list, entry)].data))
	}
	for name, change := range map[string]func([]item) []item{
		"its SHA-256 is": func(l []item) []item { l[at(l, set.ScriptEntry)].data[20] ^= 1; return l },
		"it is missing":  func(l []item) []item { i := at(l, set.TextEntry); return slices.Delete(l, i, i+1) },
		"twice":          func(l []item) []item { i := at(l, set.ScriptEntry); return slices.Insert(l, i, l[i]) },
		"the manifest says": func(l []item) []item {
			x := &l[at(l, set.ScriptEntry)]
			x.data, x.h.Size = x.data[:10], 10
			return l
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, m := source.copyOf(t)
			rewrite(t, dir, set.MainArchive, m, change, nil)
			r := verified(t, source.manifest(dir))
			require.Len(t, r.Damage, 1, "%v", r.Damage)
			require.Contains(t, r.Damage[0].Problem, name)
		})
	}
	dir, m := source.copyOf(t) // in the archive of the bus they do not belong
	rewrite(t, dir, set.EventBusArchive, m, func(l []item) []item {
		return slices.Insert(l, len(l)-1, item{list[at(list, set.ScriptEntry)].h, list[at(list, set.ScriptEntry)].data})
	}, nil)
	r := verified(t, source.manifest(dir))
	require.Len(t, r.Damage, 1)
	require.Contains(t, r.Damage[0].Problem, "does not belong there")
}

// Sets of earlier versions have none, and are as good as they were; an archive that was
// brought alone lacks nothing either.
func TestSetsWithoutInstructions(t *testing.T) {
	dir, m := source.copyOf(t)
	m.Instructions = nil
	for _, kind := range []string{set.MainArchive, set.EventBusArchive} {
		rewrite(t, dir, kind, m, func(l []item) []item {
			l = slices.DeleteFunc(l, func(x item) bool { return x.h.Name == set.TextEntry || x.h.Name == set.ScriptEntry })
			text, err := json.Marshal(m) // sizes and hashes in it do not count
			require.NoError(t, err)
			x := &l[len(l)-1]
			x.h.Size, x.data = int64(len(text)), text
			return l
		}, nil)
	}
	require.NoError(t, os.Remove(filepath.Join(dir, source.id().TextName())))
	require.NoError(t, os.Remove(filepath.Join(dir, source.id().ScriptName())))
	s, err := set.List(dir)
	require.NoError(t, err)
	require.Empty(t, s.Sets[0].Missing)
	text, err := os.ReadFile(source.manifest(dir))
	require.NoError(t, err)
	require.NotContains(t, string(text), "instructions")
	require.Empty(t, verified(t, source.manifest(dir)).Damage)
	dir, _ = source.copyOf(t)
	for _, name := range []string{source.id().TextName(), source.id().ScriptName(), source.id().ManifestName()} {
		require.NoError(t, os.Remove(filepath.Join(dir, name)))
	}
	require.Empty(t, verified(t, filepath.Join(dir, source.id().MainName())).Damage)
}
