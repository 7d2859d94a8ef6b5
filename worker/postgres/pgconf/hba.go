package pgconf

import "strings"

// AccessLines cuts pg_hba.conf, pg_ident.conf or a file of names into its lines, as
// tokenize_file of PostgreSQL's src/backend/libpq/hba.c does: a backslash at the end
// continues a line (from 14 on).
func AccessLines(content string) []string {
	return strings.Split(strings.NewReplacer("\\\r\n", "", "\\\n", "").Replace(content), "\n")
}

// AccessToken is one word of such a line.
type AccessToken struct {
	Text string // without quotes
	// Quoted tells that it begins with a quote: then @ and keywords mean nothing.
	Quoted bool
}

// AccessTokens takes a line apart, as next_token of hba.c does: words end at white
// space and commas outside of double quotes, which may begin within a word; two
// quotes within quotes are one.
func AccessTokens(line string) []AccessToken {
	var tokens []AccessToken
	for i := 0; ; {
		for i < len(line) && strings.IndexByte(" \t\r\n\v\f,", line[i]) >= 0 {
			i++
		}
		if i == len(line) || line[i] == '#' {
			return tokens
		}
		t := AccessToken{Quoted: line[i] == '"'}
		var text []byte
		in, was := false, false
		for ; i < len(line); i++ {
			c := line[i]
			if !in && strings.IndexByte(" \t\r\n\v\f,#", c) >= 0 {
				break
			}
			if c != '"' || was {
				text = append(text, c)
			}
			was = in && c == '"' && !was
			if c == '"' {
				in = !in
			}
		}
		t.Text = string(text)
		tokens = append(tokens, t)
	}
}
