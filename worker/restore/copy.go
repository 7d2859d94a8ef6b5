package restore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
)

// maxCopy bounds the manifest's copy in bytes: some three million files.
const maxCopy = 1 << 30

// prefixes tells what an archive was seen to hold.
type prefixes struct{ main, bus bool }

// readCopy reads through an archive to the copy of the manifest that it carries, the last
// entry. What comes behind damage may lie in a file, and be the archive of another set: the
// last copy counts, but one of the set that the archive's name says comes first.
func readCopy(ctx context.Context, path string) (*text, prefixes, error) {
	var seen prefixes
	id, _ := set.IDOfName(filepath.Base(path))
	var found *text
	var first *archive.DamageError // what the copy may be missing for
	r, err := archive.OpenSalvage(path, salvage("", func(_ string, d *archive.DamageError) { first = cmp.Or(first, d) }))
	if err != nil {
		return nil, seen, err
	}
	defer r.Close()
	g := guarded{ctx: ctx, r: r}
	for {
		if err := ended(ctx); err != nil {
			return nil, seen, err
		}
		h, err := r.Next()
		if err == nil && h.Name == set.ManifestCopy && h.Kind == archive.Regular {
			text, unread := keepCopy(h, g)
			var damaged *archive.DamageError
			switch {
			case errors.As(unread, &damaged):
				first = cmp.Or(first, damaged)
			case unread != nil:
				return nil, seen, unread
			case found == nil || !found.of(id) || text.of(id):
				found = text
			}
		}
		var damaged *archive.DamageError
		switch {
		case err == io.EOF && found != nil:
			return found, seen, nil
		case err == io.EOF && first != nil:
			err = errors.New(inWords(first))
		case err == io.EOF && !seen.main && !seen.bus:
			return nil, seen, fmt.Errorf("open archive %s: it holds no %s: it was not made by this program, and only the program that made it can restore it", path, set.ManifestCopy)
		case err == io.EOF:
			err = fmt.Errorf("%s is missing", set.ManifestCopy)
		case errors.As(err, &damaged):
			err = errors.New(inWords(damaged))
		case err != nil:
			return nil, seen, err
		}
		if err != nil {
			return nil, seen, &DamagedError{Set: string(id), Doing: "read the copy of the manifest in " + path, Total: 1,
				Damage: []Damage{{Archive: filepath.Base(path), Entry: filepath.Base(path), Problem: err.Error()}},
				Remedy: "without a manifest nothing can be checked or restored by this program: bring the manifest or the set's other archive"}
		}
		seen.main = seen.main || under(h.Name, set.PostgresRepo) || under(h.Name, set.PostgresConfig) || under(h.Name, set.FilesPrefix)
		seen.bus = seen.bus || under(h.Name, set.EventBusPrefix)
	}
}

// keepCopy keeps the entry h of r, a copy of the manifest.
func keepCopy(h *archive.Header, r io.Reader) (*text, error) {
	if h.Size > maxCopy {
		return nil, &archive.DamageError{What: fmt.Sprintf("the copy of the manifest has %d bytes, more than %d", h.Size, int64(maxCopy))}
	}
	return keepText(r)
}

// under tells whether an entry is the directory prefix or lies in it.
func under(name, prefix string) bool {
	return strings.HasPrefix(name, prefix) || name == strings.TrimSuffix(prefix, "/")
}

// inWords is what an archive's damage says without the archive's path.
func inWords(d *archive.DamageError) string {
	text := fmt.Sprintf("damaged near byte %d: %s", d.Offset, d.What)
	if d.Err != nil {
		text += ": " + d.Err.Error()
	}
	return text
}

// difference is a place where the manifest and its copy differ.
type difference struct{ part, problem string }

// differs compares the manifest with the copy in an archive: they must say the same
// but for the archives' sizes and SHA-256, which a copy cannot hold. It gives the first
// place of each part where they differ. The files, which may be many, are compared one by one: mostly
// their bytes settle it, since both were written by the same code; JSON that somebody
// wrote anew is compared by value.
func differs(manifest, archived io.Reader) []difference {
	x, y := set.NewStream(manifest), set.NewStream(archived)
	first := ""
	no := func(err error) []difference {
		return []difference{{"", fmt.Sprintf("it is damaged or no manifest: %v", err)}}
	}
	for i := 0; ; i++ {
		a, aerr := x.Next()
		b, berr := y.Next()
		if aerr == io.EOF && berr == io.EOF {
			break
		}
		if aerr == nil && berr == nil {
			if first == "" && !bytes.Equal(a, b) {
				first = whereDiffers(fmt.Sprintf(".files.entries[%d]", i), value(a), value(b))
			}
			continue
		}
		if berr != nil && berr != io.EOF {
			return no(berr)
		}
		first = cmp.Or(first, ".files.entries")
		if more := drained(x, aerr, y, berr); more != nil {
			return no(more)
		}
		break
	}
	places := differing(value(x.Head()), value(y.Head()))
	if first != "" && !slices.ContainsFunc(places, func(p string) bool { return topOf(p) == FilesPart }) {
		places = append(places, first)
	}
	if slices.Contains(places, ".set") { // it says nothing of this set's parts
		return []difference{{"", "it is of another set"}}
	}
	var out []difference
	for _, p := range places {
		part := topOf(p)
		if !slices.Contains(AllParts, part) {
			part = ""
		}
		out = append(out, difference{part, "it differs from the manifest at " + p})
	}
	return out
}

// differing are the first places below each key of two manifests where they differ.
func differing(a, b any) []string {
	x, xok := a.(map[string]any)
	y, yok := b.(map[string]any)
	if !xok || !yok {
		if p := whereDiffers("", a, b); p != "" || !reflect.DeepEqual(a, b) {
			return []string{cmp.Or(p, ".")}
		}
		return nil
	}
	var out []string
	keys := slices.Sorted(maps.Keys(x))
	for k := range y {
		if _, ok := x[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		va, aok := x[k]
		vb, bok := y[k]
		if k == "archives" {
			va, vb = bare(va), bare(vb)
		}
		if aok != bok {
			out = append(out, "."+k)
		} else if p := whereDiffers("."+k, va, vb); p != "" {
			out = append(out, p)
		}
	}
	return out
}

// topOf is the first key in a place such as .files.entries[3].
func topOf(place string) string {
	top, _, _ := strings.Cut(strings.TrimPrefix(place, "."), ".")
	return top
}

// drained reads the longer of two lists to its end.
func drained(x *set.Stream, xerr error, y *set.Stream, yerr error) error {
	for xerr == nil {
		_, xerr = x.Next()
	}
	for yerr == nil {
		_, yerr = y.Next()
	}
	if yerr != io.EOF {
		return yerr
	}
	return nil
}

func value(text []byte) any {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	if _, err := d.Token(); err != io.EOF {
		return nil
	}
	return v
}

// bare takes sizes and hashes out of a list of archives.
func bare(v any) any {
	list, _ := v.([]any)
	for _, a := range list {
		if m, ok := a.(map[string]any); ok {
			delete(m, "size")
			delete(m, "sha256")
		}
	}
	return v
}

// whereDiffers gives the first place where two JSON values differ, "" for none.
func whereDiffers(at string, a, b any) string {
	switch x := a.(type) {
	case map[string]any:
		y, ok := b.(map[string]any)
		if !ok {
			return at
		}
		for _, k := range slices.Sorted(maps.Keys(y)) {
			if _, ok := x[k]; !ok {
				return at + "." + k
			}
		}
		for _, k := range slices.Sorted(maps.Keys(x)) {
			if _, ok := y[k]; !ok {
				return at + "." + k
			}
			if d := whereDiffers(at+"."+k, x[k], y[k]); d != "" {
				return d
			}
		}
		return ""
	case []any:
		y, ok := b.([]any)
		if !ok || len(x) != len(y) {
			return at
		}
		for i := range x {
			if d := whereDiffers(fmt.Sprintf("%s[%d]", at, i), x[i], y[i]); d != "" {
				return d
			}
		}
		return ""
	}
	if !reflect.DeepEqual(a, b) {
		return at
	}
	return ""
}
