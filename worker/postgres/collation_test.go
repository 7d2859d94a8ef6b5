package postgres

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPlainLocale(t *testing.T) {
	for _, same := range [][2]string{{"en_US.UTF-8", "en_US.utf8"}, {"C.UTF-8", "C.utf8"}, {"de_DE.ISO8859-15@euro", "de_DE.iso885915@euro"}, {"POSIX", "posix"}} {
		require.Equal(t, plainLocale(same[0]), plainLocale(same[1]))
	}
	for _, other := range [][2]string{{"en_US.UTF-8", "en_US"}, {"en_US.UTF-8", "en_GB.UTF-8"}, {"sr_RS.UTF-8@latin", "sr_RS.UTF-8"}} {
		require.NotEqual(t, plainLocale(other[0]), plainLocale(other[1]))
	}
}

// TestGlibcIsTold: the text that glibc says of itself, of several distributions.
func TestGlibcIsTold(t *testing.T) {
	for text, want := range map[string]string{
		"GNU C Library (Debian GLIBC 2.36-9+deb12u13) stable release version 2.36.\n": "2.36",
		"GNU C Library (GNU libc) stable release version 2.28.\n":                     "2.28",
		"GNU C Library (Ubuntu GLIBC 2.39-0ubuntu8.6) stable release version 2.39.\n": "2.39",
	} {
		require.Equal(t, want, string(glibcVersion.FindStringSubmatch(text)[1]))
	}
	require.Nil(t, glibcVersion.FindStringSubmatch("musl libc 1.2.4"))
	for _, name := range []string{"libc.so.6", "libc-2.28.so"} {
		require.True(t, glibcFile.MatchString(name))
	}
	require.False(t, glibcFile.MatchString("libc.musl-x86_64.so.1"))
}
