package set

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// WriteManifest writes m as JSON. The files come from next, one entry's JSON a
// call, io.EOF after the last, so that a long list need not be in memory.
func WriteManifest(w io.Writer, m *Manifest, next func() ([]byte, error)) error {
	head, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	// Files is the manifest's last field and Entries the last of Files.
	at := bytes.LastIndex(head, []byte("[]"))
	if m.Files == nil || len(m.Files.Entries) != 0 || at < 0 {
		return errors.New("the manifest's list of files is given twice")
	}
	b := bufio.NewWriterSize(w, 1<<20)
	b.Write(head[:at+1])
	sep := "\n"
	for {
		entry, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the list of files: %w", err)
		}
		b.WriteString(sep)
		b.Write(entry)
		sep = ",\n"
	}
	b.Write(head[at+1:])
	b.WriteByte('\n')
	return b.Flush()
}
