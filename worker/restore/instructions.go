package restore

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
)

// instructions holds the instructions beside the archives against the manifest: a
// tired person runs that script as root. A restore needs neither.
func (s *Set) instructions() []Damage {
	var out []Damage
	for _, x := range s.Manifest.Instructions {
		path := filepath.Join(s.Dir, x.Name)
		problem := checkInstruction(path, x)
		if errors.Is(problem, fs.ErrNotExist) && s.copied {
			continue // an archive alone was brought
		}
		if problem == nil {
			continue
		}
		text := problem.Error()
		if errors.Is(problem, fs.ErrNotExist) {
			text = "the file is missing"
		}
		out = append(out, Damage{Entry: x.Name, Restorable: true, Problem: fmt.Sprintf("%s; do not use it, and take it out of the archive again: tar xzOf %s %s >%s", text, set.ID(s.Manifest.Set).MainName(), x.Entry, x.Name)})
	}
	return out
}

func checkInstruction(path string, want set.Instruction) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return errors.New("it is no regular file")
	}
	f, err := set.OpenRegular(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return sameInstruction(f, fi.Size(), want)
}

// sameInstruction compares a file, or an entry, of size bytes with what the manifest says.
func sameInstruction(r io.Reader, size int64, want set.Instruction) error {
	if size != want.Size {
		return fmt.Errorf("it has %d bytes, the manifest says %d", size, want.Size)
	}
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want.SHA256 {
		return fmt.Errorf("its SHA-256 is %s, the manifest says %s", got, want.SHA256)
	}
	return nil
}

// isInstruction tells whether an entry of the archive is one that the manifest names.
func (x *scan) isInstruction(entry string) bool {
	return x.kind == set.MainArchive && slices.ContainsFunc(x.set.Manifest.Instructions, func(i set.Instruction) bool { return i.Entry == entry })
}

// instruction checks the archive's own copy.
func (x *scan) instruction(h *archive.Header) error {
	if x.told == nil {
		x.told = map[string]int{}
	}
	x.told[h.Name]++
	if !x.regular(h) {
		return nil
	}
	if x.told[h.Name] > 1 {
		x.bad(h.Name, "it is in the archive twice")
		return nil
	}
	at := slices.IndexFunc(x.set.Manifest.Instructions, func(i set.Instruction) bool { return i.Entry == h.Name })
	body := &watched{r: x.body}
	err := sameInstruction(body, h.Size, x.set.Manifest.Instructions[at])
	if body.err != nil {
		return body.err
	}
	if err != nil {
		x.add(Damage{Entry: h.Name, Problem: err.Error(), Restorable: true})
	}
	return nil
}

// untold reports instructions that the manifest names and the archive has not.
func (x *scan) untold() {
	if x.kind != set.MainArchive {
		return
	}
	for _, i := range x.set.Manifest.Instructions {
		if x.told[i.Entry] == 0 {
			x.add(Damage{Entry: i.Entry, Problem: "it is missing", Restorable: true})
		}
	}
}
