package archive

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPatterns(t *testing.T) {
	const root = "/data1/site"
	type want struct {
		patterns string // separated by spaces
		rel      string // with a slash at the end: a directory
		out      bool
	}
	for _, c := range []want{
		{"*.tmp", "a.tmp", true}, {"*.tmp", "x/y/a.tmp", true}, {"*.tmp", "a.tmpx", false}, {"*.tmp", ".tmp", true},
		{"*.tmp", "a.tmp/", true}, {"*.tmp", "A.TMP", false},
		{"cache/", "cache/", true}, {"cache/", "x/cache/", true}, {"cache/", "cache", false},
		{"logs/old", "logs/old", true}, {"logs/old", "x/logs/old", false}, {"logs/*", "logs/a", true}, {"logs/*", "logs/a/b", false},
		{"logs/", "x/logs/", true}, {"a/b/", "a/b/", true}, {"a/b/", "a/b", false},
		{"/data1/site/x", "x", true}, {"/data1/site/x", "y/x", false}, {"/x", "x", false}, {"/data1/*/x", "x", true}, {"/data1/**/x", "q/r/x", true},
		{"/**", "x", true}, {"/data1/site/**/", "x/", true}, {"/data1/site/**/", "x", false},
		{"**/x", "x", true}, {"**/x", "a/b/x", true}, {"a/**", "a/", false}, {"a/**", "a/b", true}, {"a/**", "a/b/c", true},
		{"a/**/b", "a/b", true}, {"a/**/b", "a/x/y/b", true}, {"a/**/b", "a/x/c", false}, {"a/**/b/**/c", "a/b/x/b/y/c", true}, {"**", "any/thing", true},
		{"a**b", "axxb", true}, {"x/a**b", "x/a/b", false},
		{"?", "ü", true}, {"?", "\xff", true}, {"??", "ü", false}, {"*\xe9", "caf\xe9", true}, {"caf\xe9", "caf\xe8", false}, {"[\xe8-\xe9]", "\xe9", true},
		{"[a-c]x", "bx", true}, {"[!a-c]x", "bx", false}, {"[^a-c]x", "dx", true}, {"[]]", "]", true}, {"[!]]", "a", true}, {"[a-]", "-", true}, {`[\]]`, "]", true}, {"[ä-ö]", "ö", true},
		{`\*`, "*", true}, {`\*`, "x", false}, {`\!a`, "!a", true}, {`a\?`, "a?", true}, {`\\`, `\`, true}, {`\ü`, "ü", true},
		{"*.log !keep.log", "keep.log", false}, {"*.log !keep.log", "x/other.log", true}, {"*.log !keep.log keep.*", "keep.log", true}, {"!x", "x", false},
		{"#a", "#a", true}, {"*", ".hidden", true}, {"*a*b*c*", "xaxbxcx", true}, {"*a*b*c", "xaxbxcx", false}, {"", "x", false},
	} {
		var list []string
		if c.patterns != "" {
			list = strings.Split(c.patterns, " ")
		}
		ps, err := compilePatterns(list)
		require.NoError(t, err, c.patterns)
		rel, dir := strings.CutSuffix(c.rel, "/")
		require.Equal(t, c.out, ps.excludes([]spot{{root + "/" + rel, rel}}, dir), "%q on %q", c.patterns, c.rel)
	}
}

func TestBadPatterns(t *testing.T) {
	for _, p := range []string{"", "!", "/", "//", "a//b", "./a", "a/..", "..", "[a", "[", "[]", "[!", "[z-a]", `a\`, `[a\`, "a\x00", "[a/b]", "!/"} {
		err := CheckPatterns([]string{"good", p})
		require.Error(t, err, "%q", p)
		require.Contains(t, err.Error(), "pattern 2")
		require.NotContains(t, err.Error(), "\n")
	}
	require.NoError(t, CheckPatterns(nil))
}

// Patterns that drive a careless matcher mad.
func TestPatternsEndSoon(t *testing.T) {
	ps, err := compilePatterns([]string{strings.Repeat("*a", 50) + "b", strings.Repeat("**/a/", 50) + "b"})
	require.NoError(t, err)
	began := time.Now()
	require.False(t, ps.excludes([]spot{{"/", strings.Repeat("a", 255)}}, false))
	require.False(t, ps.excludes([]spot{{"/", strings.Repeat("a/", 2000) + "a"}}, false))
	require.Less(t, time.Since(began), 2*time.Second)
}

func FuzzPattern(f *testing.F) {
	f.Add("a/**/[!b]*", "a/x/c")
	f.Fuzz(func(t *testing.T, p, name string) {
		if ps, err := compilePatterns([]string{p}); err == nil {
			ps.excludes([]spot{{"/" + name, name}}, true)
		}
	})
}
