package set

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Proof is what a verification or a drill found, later than the manifest.
type Proof struct {
	Kind string    `json:"kind"` // verify or drill
	At   time.Time `json:"at"`
	Good bool      `json:"good"`
	// Damage are the first findings, all where there are few.
	Damage []Damage `json:"damage,omitempty"`
	// DamageTotal counts all findings; 0 in a proof of an earlier version, see Findings.
	DamageTotal int `json:"damage_total,omitempty"`
}

// Findings is how many findings the proof knows of.
func (p *Proof) Findings() int { return max(p.DamageTotal, len(p.Damage)) }

// First says in one line what was found first, and how much more there is.
func (p *Proof) First() string {
	if len(p.Damage) == 0 {
		return "`worker verify` names it"
	}
	text := p.Damage[0].Entry + ": " + p.Damage[0].Problem
	if more := p.Findings() - 1; more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	return text
}

// Proofs is the content of the proof file: newest last.
type Proofs struct {
	Format  string  `json:"format"`
	Version int     `json:"version"`
	Set     string  `json:"set"`
	Proofs  []Proof `json:"proofs"`
}

const (
	proofFormat = "catalog-backup/proof"
	keptProofs  = 100
	// maxProofs bounds what is read as proofs: more than keptProofs of the longest.
	maxProofs = 64 << 20

	// A proof file keeps findings in full where they are few and short: 100 of at
	// most 8 KiB. A list of sets, which is published each minute, has less of them.
	provenDamage = 100
	provenText   = 4 << 10
	listedDamage = 10
	listedText   = 300
	// Warnings of the backup itself, which name at most 20 files each.
	listedWarnings = 50
	listedWarning  = 4 << 10
)

// ReadProofs reads the proofs beside the manifest of id in dir; none is no error.
// Those before a place where the file is damaged are given with the error.
func ReadProofs(dir string, id ID) (Proofs, error) {
	p, err := readProofs(filepath.Join(dir, id.ProofName()), id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return p, nil
	case errors.Is(err, errDamagedProofs):
		err = fmt.Errorf("%w; the next verify writes it anew", err)
	}
	if err != nil {
		err = fmt.Errorf("read proofs of set %s: %w", id, err)
	}
	return p, err
}

// errDamagedProofs is wrapped where a file of proofs was read as far as it can ever be,
// and may be replaced by what it gave.
var errDamagedProofs = errors.New("is damaged")

// readProofs is ReadProofs with fs.ErrNotExist. Any error but errDamagedProofs says
// that there may be more than was read, now or for a later version.
func readProofs(path string, id ID) (Proofs, error) {
	p := Proofs{Format: proofFormat, Version: FormatVersion, Set: string(id)}
	f, err := OpenRegular(path)
	if errors.Is(err, errOdd) {
		return p, fmt.Errorf("%s is no file of proofs: %w", id.ProofName(), err)
	}
	if err != nil {
		return p, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return p, err
	} else if fi.Size() > maxProofs {
		return p, fmt.Errorf("%s is no file of proofs: %w", id.ProofName(), tooLong(path, maxProofs))
	}
	format, version, err := p.decode(json.NewDecoder(atMost(f, path, maxProofs)), string(id))
	var failed *fs.PathError
	switch {
	case errors.As(err, &failed):
		return p, err
	case version > FormatVersion || err == nil && (version != FormatVersion || format != proofFormat):
		return p, fmt.Errorf("%s is of format %q, %w %d; use the catalog-backup that wrote it, or a newer one, or move it away", id.ProofName(), format, ErrUnknownVersion, version)
	case err != nil:
		return p, fmt.Errorf("%s %w: %w", id.ProofName(), errDamagedProofs, err)
	}
	return p, nil
}

// decode reads one proof after the other, so that those before a damage are kept.
func (p *Proofs) decode(d *json.Decoder, id string) (format string, version int, err error) {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return "", 0, errors.Join(errors.New("it is no JSON object"), err)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return format, version, err
		}
		var other any
		switch key {
		case "proofs":
			err = p.decodeList(d)
		case "format":
			err = d.Decode(&format)
		case "version":
			err = d.Decode(&version)
		case "set":
			if err = d.Decode(&other); err == nil && other != id {
				err = fmt.Errorf("it is of set %v", other)
			}
		default:
			err = d.Decode(&other)
		}
		if err != nil {
			return format, version, err
		}
	}
	_, err = d.Token()
	return format, version, err
}

func (p *Proofs) decodeList(d *json.Decoder) error {
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return errors.Join(errors.New("its proofs are no list"), err)
	}
	for d.More() {
		var one Proof
		if err := d.Decode(&one); err != nil {
			return err
		}
		p.Proofs = append(p.Proofs, one)
	}
	_, err := d.Token()
	return err
}

// brief is the proof with the first findings, each of their texts at most text bytes
// long, and the count of all.
func (p *Proof) brief(findings, text int) *Proof {
	b := *p
	b.Kind = brief(p.Kind, text)
	b.Damage = nil
	if !p.Good {
		b.DamageTotal = p.Findings()
	}
	for _, d := range p.Damage[:min(len(p.Damage), findings)] {
		d.Part, d.Entry, d.Problem = brief(d.Part, text), brief(d.Entry, text), brief(d.Problem, text)
		b.Damage = append(b.Damage, d)
	}
	return &b
}

// brief makes a text that came from an archive fit to be kept and shown: printable,
// what is not shown as escapes, and at most most bytes and an ellipsis long.
func brief(s string, most int) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		piece := s[i : i+n]
		switch {
		case r == utf8.RuneError && n == 1:
			piece = fmt.Sprintf(`\x%02x`, s[i])
		case !unicode.IsGraphic(r):
			piece = strings.Trim(strconv.QuoteRune(r), "'")
		}
		if b.Len()+len(piece) > most {
			b.WriteString("…")
			break
		}
		b.WriteString(piece)
		i += n
	}
	return b.String()
}
