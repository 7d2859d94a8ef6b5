package pgconf

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The cases follow next_token of PostgreSQL's hba.c.
func TestAccessTokens(t *testing.T) {
	for line, want := range map[string][]AccessToken{
		``:                       nil,
		"  # local @no":          nil,
		"local\tall, postgres\r": {{"local", false}, {"all", false}, {"postgres", false}},
		`local @"my dbs",@b all`: {{"local", false}, {"@my dbs", false}, {"@b", false}, {"all", false}},
		`local "@my dbs" "a#b"`:  {{"local", false}, {"@my dbs", true}, {"a#b", true}},
		`a"b ""c"d e#f`:          {{`ab "cd`, false}, {"e", false}},
		`"" x`:                   {{"", true}, {"x", false}},
		`"never ended, #`:        {{"never ended, #", true}},
	} {
		require.Equal(t, want, AccessTokens(line), line)
	}
	require.Equal(t, []string{"local all all trust", "x", ""}, AccessLines("local all \\\nall trust\nx\n"))
}
