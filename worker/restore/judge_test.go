package restore

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
)

func TestJudge(t *testing.T) {
	pg := Damage{Archive: "m", Part: PostgresPart, Entry: "postgres/pgbackrest/x", Problem: "flipped"}
	soft := Damage{Archive: "m", Part: PostgresPart, Entry: "wal", Problem: "a tablespace was made", Restorable: true}
	file := Damage{Archive: "m", Part: FilesPart, Entry: "files/x", Problem: "flipped"}
	sum := Damage{Archive: "m", Entry: "m", Problem: "the archive's SHA-256 is another"}
	whole := Damage{Entry: "manifest", Problem: "it is of another set"}
	for name, c := range map[string]struct {
		found, against []Damage
		parts, whole   []string
	}{
		"nothing":                   {nil, nil, AllParts, AllParts},
		"in the part":               {[]Damage{pg}, []Damage{pg}, []string{PostgresPart}, nil},
		"in another part":           {[]Damage{pg}, nil, []string{FilesPart, EventBusPart}, []string{FilesPart, EventBusPart}},
		"in one of three":           {[]Damage{pg}, []Damage{pg}, AllParts, []string{FilesPart, EventBusPart}},
		"in two of three":           {[]Damage{pg, file}, []Damage{pg, file}, AllParts, []string{EventBusPart}},
		"restorable":                {[]Damage{soft}, nil, AllParts, AllParts},
		"restorable and another":    {[]Damage{soft, pg}, []Damage{pg}, AllParts, []string{FilesPart, EventBusPart}},
		"the archive's own hash":    {[]Damage{sum}, nil, AllParts, AllParts},
		"the manifest of all parts": {[]Damage{whole}, []Damage{whole}, []string{FilesPart}, nil},
	} {
		against, beside, left := judge(c.found, c.parts)
		require.Equal(t, c.against, against, name)
		require.Equal(t, c.whole, left, name)
		require.Len(t, beside, len(c.found)-len(c.against), name)
	}
}

func TestPartOf(t *testing.T) {
	for entry, part := range map[string]string{
		"postgres/pgbackrest": PostgresPart, "postgres/pgbackrest/x": PostgresPart, "postgres/config/etc/x": PostgresPart, "postgres": "", "postgres/x": "",
		"files": FilesPart, "files/x": FilesPart, "files2/x": "", "eventbus/topics/t/0/x.log": EventBusPart, "eventbus/x": "",
		set.ManifestCopy: "", "x_alation_backup.tar.gz": "",
	} {
		require.Equal(t, part, partOf(entry), entry)
	}
}

// A part is restored whatever is wrong with another one, and what is wrong is said.
func TestOnlyWhatIsWhole(t *testing.T) {
	dir, m := source.copyOf(t)
	rewrite(t, dir, set.MainArchive, m, func(l []item) []item {
		at := slices.IndexFunc(l, func(x item) bool {
			return x.h.Kind == archive.Regular && strings.HasSuffix(x.h.Name, "alation_conf.yaml")
		})
		l[at].data[7] ^= 0x20
		return l
	}, nil)
	manifest := source.manifest(dir)
	require.False(t, verified(t, manifest).Good)

	_, errs, code := source.run(t, "restore", manifest, "--target", scratch(t)+"/all")
	require.Equal(t, 8, code)
	require.Contains(t, errs, "restore the rest by --only postgres,eventbus")
	_, errs, code = source.run(t, "restore", manifest, "--only", "files", "--target", scratch(t)+"/files")
	require.Equal(t, 8, code)
	require.Contains(t, errs, "alation_conf.yaml")
	require.NotContains(t, errs, "--only")

	v := source.warned(t, manifest, "--only", "postgres,eventbus", "--target", scratch(t)+"/rest")
	require.Contains(t, strings.Join(v.Warnings, "\n"), "in its part files, which was not asked for")
	require.Contains(t, strings.Join(v.Warnings, "\n"), "alation_conf.yaml")
	require.Equal(t, source.rows, serve(t, v)(rowsDigest))
}
