package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"testing"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/health"
	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
)

// The examples in docs/exit-codes.md are what the commands print: each decodes
// into the command's own type and comes out of it again just as it stands there.
func TestExamplesInThePageAreReal(t *testing.T) {
	page, err := os.ReadFile("../docs/exit-codes.md")
	require.NoError(t, err)
	shapes := map[string]any{
		"producer backup-all --json":            &result{},
		"producer backup-all --wait --json":     &ending{},
		"producer status --json":                &report{},
		"producer list --json":                  &[]set.Listed{},
		"producer show SET --json":              &details{},
		"producer cancel --json":                &cancelled{},
		"producer abandon RUN --json":           &abandoned{},
		"producer forget NODE --json":           &forgotten{},
		"producer schedule list --json":         &[]planLine{},
		"producer schedule explain CRON --json": &explanation{},
		"producer schedule pause PLAN --json":   &pausing{},
		"producer health --json":                &health.Answer{},
	}
	blocks := regexp.MustCompile("(?s)<!-- json: (producer [^>]*) -->\n```json\n(.*?)```").FindAllSubmatch(page, -1)
	require.Len(t, blocks, len(shapes))
	for _, b := range blocks {
		into, ok := shapes[string(b[1])]
		require.True(t, ok, "%s", b[1])
		d := json.NewDecoder(bytes.NewReader(b[2]))
		d.DisallowUnknownFields()
		require.NoError(t, d.Decode(into), "%s", b[1])
		out, err := json.Marshal(into)
		require.NoError(t, err)
		require.JSONEq(t, string(b[2]), string(out), "%s", b[1])
	}
	for name, code := range map[string]int{"good": exit.Good, "other error": exit.Other, "usage or configuration": exit.Usage, "the run failed": exit.RunFailed,
		"the run was cancelled": exit.Cancelled, "another run": exit.Busy, "Redis unreachable": exit.Unreachable, "not found": exit.NotFound,
		"damage found": exit.Damage, "good with warnings": exit.Warnings} {
		require.Contains(t, string(page), fmt.Sprintf("| %d | %s", code, name))
	}
}
