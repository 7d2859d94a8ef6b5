package set

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"
)

// Summary is one line of a list of sets. Its JSON is the public one of `list`.
type Summary struct {
	Set      string    `json:"set"`
	Type     Type      `json:"type"`
	Created  time.Time `json:"created"`
	Size     *int64    `json:"size"`
	Archives []string  `json:"archives"`
	Parent   *string   `json:"parent"`
	Proof    *Proof    `json:"proof"` // the newest, with its first findings

	// DoubtedBy is the newest proof that found damage, where a newer one found the set
	// good: something gave wrong bytes at that time.
	DoubtedBy *Proof `json:"doubted_by,omitempty"`
	// ProofProblem says why the file of proofs cannot be read to its end.
	ProofProblem string `json:"proof_problem,omitempty"`

	Instance string   `json:"instance"`
	Parts    []string `json:"parts"`
	Warnings []string `json:"warnings"`
	Missing  []string `json:"missing"` // archives and instructions that are not beside the manifest, or of another size
	Dir      string   `json:"dir"`
}

// Listing is what a directory holds.
type Listing struct {
	Sets []Summary
	// Foreign are files that look like a set's and have no manifest of ours:
	// the catalog's own older backups. They are never touched.
	Foreign []string
	// Problems are manifests that cannot be read, in words.
	Problems []string
}

// List reads every manifest in dir. Sets come oldest first.
func List(dir string) (Listing, error) {
	l := Listing{Sets: []Summary{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return l, fmt.Errorf("list sets: %w", err)
	}
	ours := map[string]bool{}
	for _, e := range entries {
		id, ok := IDOfName(e.Name())
		if !ok || e.Name() != id.ManifestName() {
			continue
		}
		for _, n := range id.Names() { // also where the manifest is damaged: then they are of a set that it is the problem of
			ours[n] = true
		}
		m, err := ReadHead(filepath.Join(dir, e.Name()))
		if err != nil {
			l.Problems = append(l.Problems, brief(err.Error(), provenText))
			continue
		}
		s := m.Summary(dir)
		if s.ProofProblem != "" {
			l.Problems = append(l.Problems, s.ProofProblem)
		}
		l.Sets = append(l.Sets, s)
	}
	for _, e := range entries {
		if _, ok := IDOfName(e.Name()); ok && !ours[e.Name()] {
			l.Foreign = append(l.Foreign, e.Name())
		}
	}
	sort.Slice(l.Sets, func(i, j int) bool { return l.Sets[i].Set < l.Sets[j].Set })
	return l, nil
}

// Summary is the list line of a set whose files lie in dir.
func (m *Manifest) Summary(dir string) Summary {
	size := m.Size()
	s := Summary{Set: m.Set, Type: m.Type, Created: m.Finished, Size: &size, Parent: m.Parent, Instance: m.Instance,
		Parts: m.Parts(), Warnings: briefly(m.Warnings), Archives: []string{}, Missing: []string{}, Dir: dir}
	for _, a := range m.Archives {
		s.Archives = append(s.Archives, filepath.Join(dir, a.Name))
		s.look(a.Name, a.Size)
	}
	for _, x := range m.Instructions {
		s.look(x.Name, x.Size)
	}
	s.proofs(ReadProofs(dir, ID(m.Set)))
	return s
}

// briefly bounds a list of texts for people.
func briefly(texts []string) []string {
	out := []string{}
	for i, x := range texts {
		if i == listedWarnings {
			return append(out, fmt.Sprintf("and %d more: the manifest has them", len(texts)-i))
		}
		out = append(out, brief(x, listedWarning))
	}
	return out
}

// look finds out whether a file of the set is there, with the size in the manifest.
func (s *Summary) look(name string, size int64) {
	if fi, err := os.Lstat(filepath.Join(s.Dir, name)); err != nil || fi.Size() != size {
		s.Missing = append(s.Missing, name)
	}
}

// proofs takes over what is known of the set's health.
func (s *Summary) proofs(all Proofs, err error) {
	if err != nil {
		s.ProofProblem = brief(err.Error(), listedText)
	}
	for i := len(all.Proofs) - 1; i >= 0; i-- {
		p := all.Proofs[i].brief(listedDamage, listedText)
		switch {
		case s.Proof == nil:
			s.Proof = p
		case s.Proof.Good && !p.Good:
			s.DoubtedBy = p
		}
		if !p.Good {
			return
		}
	}
}
