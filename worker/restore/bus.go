package restore

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
)

// segments gives the restored segments below topics to a load.
type segments struct{ topics string }

// Open opens the segment that was the archive's entry.
func (s segments) Open(entry string) (io.ReadCloser, error) {
	rel, ok := strings.CutPrefix(entry, set.EventBusPrefix)
	if err := archive.CheckEntryName(entry); err != nil || !ok {
		return nil, fmt.Errorf("%q is no segment of an Event Bus", entry)
	}
	return os.Open(filepath.Join(s.topics, rel))
}
