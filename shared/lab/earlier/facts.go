// Package earlier knows the sets and the Redis of earlier versions that are kept as
// fixtures: what is in them, and how a test brings them back. cmd/earlier makes them
// with the programs of a version; they are never made anew, since what is proved is that
// later programs read what earlier ones left.
package earlier

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// Facts are what was true of a set's sources when it was made.
type Facts struct {
	Set     string `json:"set"`
	Program string `json:"program"` // version that made it
	// Rows are queries in the database postgres with their answers, as psql -At prints them.
	Rows map[string]string `json:"rows,omitempty"`
	// Port is PostgreSQL's, which names the restored server's socket.
	Port int `json:"port,omitempty"`
	// Files describe the application's files, by absolute path (see Tree).
	Files map[string]string `json:"files"`
	// Root is the directory that the configured paths lay in.
	Root string `json:"root"`
	Bus  *Bus   `json:"bus,omitempty"`
}

// ReadFacts reads facts.json in dir.
func ReadFacts(dir string) (*Facts, error) {
	text, err := os.ReadFile(filepath.Join(dir, "facts.json"))
	if err != nil {
		return nil, err
	}
	f := &Facts{}
	return f, json.Unmarshal(text, f)
}

// Write writes facts.json into dir.
func (f *Facts) Write(dir string) error { return writeJSON(filepath.Join(dir, "facts.json"), f) }

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// NewRoot makes a directory whose path is as long as those in the fixtures, so that it
// can stand in their place.
func NewRoot() (string, error) {
	for {
		dir := "/tmp/cb-earlier-" + strings.ToLower(rand.Text()[:8])
		err := os.Mkdir(dir, 0o755)
		if !errors.Is(err, os.ErrExist) {
			return dir, errors.Join(err, os.Chmod(dir, 0o755))
		}
	}
}
