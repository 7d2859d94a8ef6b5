package pipeline

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/stretchr/testify/require"
)

// line is one of the journal that the stages of the tests write.
type line struct {
	run, word, stage string
	pid              int
	at               int64
}

func (g *ground) journal() []line {
	b, err := os.ReadFile(filepath.Join(g.opts.Control, "journal"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(g.t, err)
	var out []line
	for _, s := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		f := strings.Fields(s)
		if len(f) < 6 { // the file is made before its first line is written
			continue
		}
		pid, _ := strconv.Atoi(f[4])
		at, _ := strconv.ParseInt(f[5], 10, 64)
		out = append(out, line{f[0], f[1], f[2], pid, at})
	}
	return out
}

func (g *ground) count(id, word, stageName string) int {
	n := 0
	for _, l := range g.journal() {
		if l.run == id && l.word == word && l.stage == stageName {
			n++
		}
	}
	return n
}
