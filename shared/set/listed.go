package set

import "time"

// Listed is one set as `list --json` of both programs prints it. Others script
// against it.
type Listed struct {
	Set      string       `json:"set"`
	Type     Type         `json:"type"`
	Created  time.Time    `json:"created"`
	Size     *int64       `json:"size"` // bytes
	Archives []string     `json:"archives"`
	Parent   *string      `json:"parent"`
	Proof    *ListedProof `json:"proof"`
}

// ListedProof is the newest proof of a listed set.
type ListedProof struct {
	Kind string    `json:"kind"`
	At   time.Time `json:"at"`
	Good bool      `json:"good"`
}

// Listed is the public part of the summary.
func (s Summary) Listed() Listed {
	l := Listed{Set: s.Set, Type: s.Type, Created: s.Created.UTC(), Size: s.Size, Archives: append([]string{}, s.Archives...), Parent: s.Parent}
	if s.Proof != nil {
		l.Proof = &ListedProof{Kind: s.Proof.Kind, At: s.Proof.At.UTC(), Good: s.Proof.Good}
	}
	return l
}
