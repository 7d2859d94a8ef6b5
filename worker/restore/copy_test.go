package restore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCopiesAreComparedByWhatTheySay(t *testing.T) {
	const entry = `{"path":"/a/%d","kind":"file","size":3}`
	manifest := `{"format":"x","archives":[{"name":"n","size":3,"sha256":"y"}],"files":{"count":2,"entries":[` + fmt.Sprintf(entry, 1) + "," + fmt.Sprintf(entry, 2) + `]}}`
	bare := strings.Replace(manifest, `,"size":3,"sha256":"y"`, "", 1)
	var spread bytes.Buffer
	require.NoError(t, json.Indent(&spread, []byte(bare), "", "  "))
	change := func(old, by string) string {
		require.Contains(t, bare, old)
		return strings.Replace(bare, old, by, 1)
	}
	for text, want := range map[string]string{
		manifest:        "",
		bare:            "",
		spread.String(): "",
		change(`"path":"/a/2","kind":"file"`, `"kind":"file","path":"/a/2"`): "",
		change("/a/2", "/a/3"):                      ".files.entries[1].path",
		change(`"kind":"file",`, ""):                ".files.entries[0].kind",
		change(","+fmt.Sprintf(entry, 2), ""):       ".files.entries",
		change(`"size":3}]`, `"size":3},{}]`):       ".files.entries",
		change(`"count":2`, `"count":3`):            ".files.count",
		change(`"format":"x"`, `"format":"y"`):      ".format",
		change(`"name":"n"`, `"name":"m"`):          ".archives[0].name",
		change(`{"format":"x",`, "{"):               ".format",
		bare[:len(bare)-1]:                          "no manifest",
		bare + "x":                                  "no manifest",
		change(`"size":3}]`, `"size":3},{}]`) + "x": "no manifest",
	} {
		got := differs(strings.NewReader(manifest), strings.NewReader(text))
		if want == "" {
			require.Empty(t, got, text)
		} else {
			require.Len(t, got, 1, text)
			require.Contains(t, got[0].problem, want, text)
			part := strings.Split(strings.TrimPrefix(want, "."), ".")[0]
			if part != FilesPart {
				part = ""
			}
			require.Equal(t, part, got[0].part, text)
		}
	}
}

// A difference belongs to its part, and each part has its own.
func TestDifferencesByPart(t *testing.T) {
	got := differs(strings.NewReader(`{"notes":[],"postgres":{"a":1,"b":2},"eventbus":null,"files":{"entries": []}}`),
		strings.NewReader(`{"notes":["x"],"postgres":{"a":2,"b":3},"eventbus":{},"files":{"entries": [{}]}}`))
	require.Equal(t, []difference{{"eventbus", "it differs from the manifest at .eventbus"}, {"", "it differs from the manifest at .notes"},
		{"postgres", "it differs from the manifest at .postgres.a"}, {"files", "it differs from the manifest at .files.entries"}}, got)
}

func TestTextIsKept(t *testing.T) {
	for _, n := range []int{0, 1, textPiece, 3*textPiece + 7} {
		long := strings.Repeat("0123456789abcdef/", n/17+1)[:n]
		kept, err := keepText(strings.NewReader(long))
		require.NoError(t, err)
		require.Equal(t, int64(n), kept.size)
		for range 2 {
			again, err := io.ReadAll(kept.open())
			require.NoError(t, err)
			require.Equal(t, long, string(again))
		}
	}
}
