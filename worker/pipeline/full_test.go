package pipeline

import (
	"fmt"
	"io/fs"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/run"

	"github.com/stretchr/testify/require"
)

// A full disk is an error for good whichever write found it, marked or not.
func TestFullDiskIsNotTriedAgain(t *testing.T) {
	e := NewEngine(Params{Now: time.Now})
	for errno, permanent := range map[syscall.Errno]bool{syscall.ENOSPC: true, syscall.EDQUOT: true, syscall.EIO: false} {
		err := fmt.Errorf("write the manifest: %w", &fs.PathError{Op: "write", Path: "files.jsonl", Err: errno})
		require.Equal(t, permanent, e.erred(run.Record{}, err).Permanent, errno)
	}
}
