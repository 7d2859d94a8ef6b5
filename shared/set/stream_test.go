package set

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// scanned gives the paths that ScanManifest hands on.
func scanned(text string) ([]string, *Manifest, error) {
	var paths []string
	m, err := ScanManifest(iotest.OneByteReader(strings.NewReader(text)), "test", func(f *File) error {
		paths = append(paths, f.Path)
		return nil
	})
	return paths, m, err
}

func TestManifestIsReadInAnyForm(t *testing.T) {
	m := sample()
	m.Files.Entries = []File{{Path: "/a"}, {Path: `/"entries": [`}, {Path: "/c"}}
	good, err := json.Marshal(m)
	require.NoError(t, err)
	var fields map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(good, &fields))
	filesFirst := fmt.Sprintf(`{"Files": %s`, fields["files"])
	for k, v := range fields {
		if k != "files" {
			filesFirst += fmt.Sprintf(",\n %q: %s", k, v)
		}
	}
	var spread bytes.Buffer
	require.NoError(t, json.Indent(&spread, good, "\t", "    "))
	for _, text := range []string{string(good), filesFirst + "}\n", spread.String()} {
		paths, got, err := scanned(text)
		require.NoError(t, err)
		require.Equal(t, []string{"/a", `/"entries": [`, "/c"}, paths)
		require.Empty(t, got.Files.Entries)
		got.Files.Entries = m.Files.Entries
		require.Equal(t, m, got)
	}
	for old, by := range map[string]string{`"files":{`: `"files":null,"more":{`, `"entries":[`: `"entries":null,"more":[`} {
		paths, _, err := scanned(strings.Replace(string(good), old, by, 1))
		require.NoError(t, err)
		require.Empty(t, paths)
	}
}

func TestStreamRefuses(t *testing.T) {
	m := sample()
	m.Files.Entries = []File{{Path: "/a"}}
	b, err := json.Marshal(m)
	require.NoError(t, err)
	good := string(b)
	for want, text := range map[string]string{
		"lists its files twice": strings.Replace(good, `"entries":`, `"entries":[],"Entries":`, 1),
		"more follows":          good + "{}",
		"invalid character":     good + "x",
		"no JSON object":        `["` + FormatName + `"]`,
		`"files" is not`:        strings.Replace(good, `"files":{`, `"files":[],"more":{`, 1),
		"cannot unmarshal":      strings.Replace(good, `"path":"/a"`, `"path":7`, 1),
		"unexpected EOF":        good[:len(good)-1],
		"damaged":               "",
	} {
		_, _, err := scanned(text)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "damaged or no manifest")
	}
	for at := range len(good) {
		_, _, err := scanned(good[:at])
		require.Error(t, err, "cut at %d", at)
	}
	// What a newer version made of the list is not called damage.
	for _, change := range []string{`"path":7`, `"path":"/a"`} {
		_, _, err = scanned(strings.Replace(strings.Replace(good, `"path":"/a"`, change, 1), `"version":1`, `"version":2`, 1))
		require.ErrorIs(t, err, ErrUnknownVersion)
	}
	_, _, err = scanned(strings.Replace(strings.Replace(good, `"files":{`, `"files":[],"more":{`, 1), `"version":1`, `"version":2`, 1))
	require.ErrorIs(t, err, ErrUnknownVersion)
	disk := errors.New("disk")
	_, err = ScanManifest(io.MultiReader(strings.NewReader(good[:100]), iotest.ErrReader(disk)), "test", nil)
	require.ErrorIs(t, err, disk)
}
