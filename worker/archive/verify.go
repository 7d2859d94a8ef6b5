package archive

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"catalog-backup/shared/set"
)

// Verifier holds an archive's application files against the manifest. It is given
// every entry under set.FilesPrefix (others it passes over), and reports at the end.
// Memory: some ten bytes a file besides the list.
type Verifier struct {
	list   *List
	report func(set.Damage)
	index  *nameIndex
	state  []finding      // per file: of the last entry of its name
	words  map[int]string // of those that are wrong
	unsure map[int]bool   // hard links to an entry that a later one took the place of
	stray  map[string]bool
	thru   map[string]int // symbolic links that entries lie below, and how many
	buf    []byte
}

// finding is what a Verifier knows of a file.
type finding uint8

const (
	notFound finding = iota
	foundGood
	foundWrong
)

// mostWords bounds for how many wrong files it is kept what is wrong; of the others
// it is only said that they are.
const mostWords = 10000

// NewVerifier makes a verifier of the manifest's files.
func NewVerifier(l *List, report func(set.Damage)) *Verifier {
	return &Verifier{list: l, report: report, index: newNameIndex(l), state: make([]finding, l.Len()), words: map[int]string{}, unsure: map[int]bool{},
		stray: map[string]bool{}, thru: map[string]int{}, buf: make([]byte, 256<<10)}
}

// nameOf is the archive entry of a path in the manifest.
func nameOf(path string) string { return entryName(set.FilesPrefix, path) }

// bytesOf is the reverse of text.
func bytesOf(s, b64 string) (string, error) {
	if b64 == "" {
		return s, nil
	}
	b, err := base64.StdEncoding.DecodeString(b64)
	return string(b), err
}

// stored tells whether a recorded file is in the archive at all.
func isStored(f *set.File) bool { return f.Kind != kindFile || f.SHA256 != "" }

// Through takes note of an entry of which a Checker says that it lies below a symbolic
// link, and tells whether that keeps it from being restored: a file does come back
// (ExtractOptions.ThroughLinks). Sets that were made before paths were resolved hold such
// entries, if a configured path led through a link.
func (v *Verifier) Through(h *Header, err error) bool {
	var t *ThroughLink
	if v == nil || !errors.As(err, &t) || !strings.HasPrefix(t.Link, set.FilesPrefix) {
		return false
	}
	v.thru[t.Link]++
	return true
}

// Entry checks one entry. Its error is one of reading r.
func (v *Verifier) Entry(h *Header, r io.Reader) error {
	if h.Name != strings.TrimSuffix(set.FilesPrefix, "/") && !strings.HasPrefix(h.Name, set.FilesPrefix) {
		return nil
	}
	i, ok := v.index.find(h.Name)
	if !ok {
		v.stray[h.Name] = true
		return nil
	}
	f := v.list.file(i)
	problems := compare(&f, h)
	if h.Kind == Regular {
		got, err := v.hash(&f, h, r)
		if err != nil {
			return err
		}
		if f.Kind == kindFile && got != f.SHA256 {
			problems = append(problems, fmt.Sprintf("the content is not what was stored: SHA-256 %s, not %s", got, f.SHA256))
		}
	}
	v.note(i, problems)
	if h.Kind == HardLink {
		v.linked(i, h)
	}
	return nil
}

// linked looks at what a hard link's content is. It is that of the entry of its first name
// that came last, which the manifest need not know: where that name was another file
// later on, only the later one has a checksum.
func (v *Verifier) linked(i int, h *Header) {
	first, ok := v.index.find(h.Link)
	if !ok || v.state[first] != foundGood || v.unsure[first] {
		v.unsure[i] = true
	}
}

// note keeps what was found of a file: a later entry of its name takes the place of
// an earlier one.
func (v *Verifier) note(i int, problems []string) {
	delete(v.words, i)
	delete(v.unsure, i)
	v.state[i] = foundGood
	if len(problems) == 0 {
		return
	}
	v.state[i] = foundWrong
	if len(v.words) < mostWords {
		v.words[i] = strings.Join(problems, "; ")
	}
}

// hash reads an entry's content and hashes it as the manifest does.
func (v *Verifier) hash(f *set.File, h *Header, r io.Reader) (string, error) {
	like := newFileHash(h)
	if like.of != f.SHA256Of {
		return "(" + like.of + ")", drain(h, r, v.buf)
	}
	_, err := io.CopyBuffer(like, dataOf(h, r), v.buf)
	return like.hex(), err
}

func drain(h *Header, r io.Reader, buf []byte) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, dataOf(h, r), buf)
	return err
}

// dataOf reads the stored bytes of an entry: straight where r is our Reader, else by
// leaving the holes out of what it reads.
func dataOf(h *Header, r io.Reader) io.Reader {
	if d, ok := r.(interface{ Data() io.Reader }); ok {
		return d.Data()
	}
	if h.Sparse == nil {
		return r
	}
	return &compactor{r: r, list: h.Sparse}
}

// compactor is the reverse of expander.
type compactor struct {
	r    io.Reader
	list []Extent
	at   int64
}

func (c *compactor) Read(p []byte) (int, error) {
	for len(c.list) > 0 && c.at == c.list[0].Offset+c.list[0].Length {
		c.list = c.list[1:]
	}
	if len(c.list) == 0 {
		return 0, io.EOF
	}
	e := c.list[0]
	if c.at < e.Offset {
		n, err := io.CopyN(io.Discard, c.r, e.Offset-c.at)
		c.at += n
		if err != nil {
			return 0, io.ErrUnexpectedEOF
		}
	}
	n, err := c.r.Read(p[:min(int64(len(p)), e.Offset+e.Length-c.at)])
	c.at += int64(n)
	if err == io.EOF && n == 0 {
		err = io.ErrUnexpectedEOF
	} else if err == io.EOF {
		err = nil
	}
	return n, err
}

// compare lists how an entry's description differs from the manifest's.
func compare(f *set.File, h *Header) []string {
	var out []string
	differ := func(what string, want, got any) {
		if want != got {
			out = append(out, fmt.Sprintf("its %s is %v, not %v", what, got, want))
		}
	}
	kinds := map[Kind]string{Regular: kindFile, Dir: kindDir, Symlink: kindSymlink, HardLink: kindHardLink}
	differ("kind", f.Kind, kinds[h.Kind])
	if f.Kind == kindFile {
		differ("size", f.Size, h.Size)
	}
	differ("mode", f.Mode, fmt.Sprintf("%04o", h.Mode))
	differ("owner", f.UID, h.UID)
	differ("group", f.GID, h.GID)
	if !f.ModTime.Equal(h.ModTime) {
		out = append(out, fmt.Sprintf("its time is %s, not %s", h.ModTime.UTC(), f.ModTime.UTC()))
	}
	target, err := bytesOf(f.Target, f.TargetBytes)
	if err != nil {
		out = append(out, "the manifest's target_bytes is no base64")
	}
	if f.Kind == kindHardLink {
		target = nameOf(target)
	}
	if f.Kind == kindSymlink || f.Kind == kindHardLink {
		differ("target", show(target), show(h.Link))
	}
	return out
}

// Finish reports, in the manifest's order, every file that is missing or wrong, then
// the entries that the manifest does not know. intact says that the archive's bytes
// are what was written, as far as checksums of the whole of it tell.
func (v *Verifier) Finish(intact bool) error {
	for i := range v.state {
		f := v.list.file(i)
		problem := ""
		switch v.state[i] {
		case notFound:
			if _, err := bytesOf(f.Path, f.PathBytes); err != nil {
				problem = "the manifest's path_bytes is no base64"
			} else if isStored(&f) {
				problem = "it is missing from the archive"
			}
		case foundGood:
			if !isStored(&f) {
				problem = "the manifest says that it is not stored, and it is"
			} else if v.unsure[i] && !intact {
				problem = "it is a hard link to an entry of which nothing tells whether it is whole, and the archive is damaged"
			}
		case foundWrong:
			if problem = v.words[i]; problem == "" {
				problem = "it is not as the manifest says"
			}
		}
		if problem != "" {
			v.report(set.Damage{Entry: nameOf(f.Path), Problem: problem})
		}
	}
	for _, link := range slices.Sorted(maps.Keys(v.thru)) {
		v.report(set.Damage{Entry: link, Restorable: true, Problem: fmt.Sprintf("entries lie below this symbolic link (%d), as earlier versions stored a configured path that leads through one; tar does not unpack them, a restore puts them where the link leads", v.thru[link])})
	}
	for _, name := range slices.Sorted(maps.Keys(v.stray)) {
		v.report(set.Damage{Entry: name, Problem: "it is in the archive and not in the manifest"})
	}
	return nil
}
