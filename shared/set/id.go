// Package set holds what a backup set is: its id, the names of its files, its
// manifest and its proofs, and how a directory of sets is read. It imports
// nothing of ours. Names follow the documented reference, see docs/set-format.md.
package set

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// minuteLayout is the timestamp of a set id, in UTC.
const minuteLayout = "200601021504"

var idRE = regexp.MustCompile(`^([0-9]{12})_([0-9A-Za-z]+(?:-[0-9A-Za-z]+){0,15})$`)

// ID is `<YYYYMMDDHHMM in UTC>_<version with dashes>`, e.g. 202109232027_10-0-0-147420.
type ID string

// NewID makes the id of the minute of t for a catalog server's version.
func NewID(t time.Time, catalogVersion string) ID {
	return ID(t.UTC().Format(minuteLayout) + "_" + strings.ReplaceAll(catalogVersion, ".", "-"))
}

// ParseID checks s, which may have come from anywhere.
func ParseID(s string) (ID, error) {
	m := idRE.FindStringSubmatch(s)
	if m == nil {
		return "", fmt.Errorf("%q is not a set id such as 202109232027_10-0-0-147420", s)
	}
	if _, err := time.Parse(minuteLayout, m[1]); err != nil {
		return "", fmt.Errorf("%q is not a set id: %s is no minute", s, m[1])
	}
	return ID(s), nil
}

// Minute is the id's minute.
func (id ID) Minute() time.Time {
	t, _ := time.Parse(minuteLayout, string(id)[:min(len(id), len(minuteLayout))])
	return t
}

// Suffixes of the files of a set, after its id.
const (
	mainSuffix     = "_alation_backup.tar.gz"
	eventBusSuffix = "_alation_eb_backup.tar.gz"
	manifestSuffix = "_alation_backup.json"
	proofSuffix    = "_alation_backup.proof.json"
	textSuffix     = "_alation_backup.restore.txt"
	scriptSuffix   = "_alation_backup.restore.sh"
)

// MainName is the base name of the main archive.
func (id ID) MainName() string { return string(id) + mainSuffix }

// EventBusName is the base name of the Event Bus archive.
func (id ID) EventBusName() string { return string(id) + eventBusSuffix }

// ManifestName is the base name of the manifest.
func (id ID) ManifestName() string { return string(id) + manifestSuffix }

// ProofName is the base name of the proofs.
func (id ID) ProofName() string { return string(id) + proofSuffix }

// TextName is the base name of the instructions for people.
func (id ID) TextName() string { return string(id) + textSuffix }

// ScriptName is the base name of the script that restores without this program.
func (id ID) ScriptName() string { return string(id) + scriptSuffix }

// Names are all final names a set may use.
func (id ID) Names() []string {
	return []string{id.MainName(), id.EventBusName(), id.ManifestName(), id.ProofName(), id.TextName(), id.ScriptName()}
}

// IDOfName tells which set a base name belongs to, by its form alone.
func IDOfName(base string) (ID, bool) {
	for _, suffix := range []string{mainSuffix, eventBusSuffix, proofSuffix, manifestSuffix, textSuffix, scriptSuffix} {
		if s, ok := strings.CutSuffix(base, suffix); ok {
			id, err := ParseID(s)
			return id, err == nil
		}
	}
	return "", false
}
