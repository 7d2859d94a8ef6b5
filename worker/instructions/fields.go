package instructions

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// field is one of a part of the manifest, by its name there.
type field struct {
	name string
	one  string   // its value, of a single one
	list []string // its values in words, of a list or an object
}

// fieldsOf are the fields of v in their order, but for those in left. They are taken
// from its JSON: what a later version records besides is told as well.
func fieldsOf(v any, left ...string) []field {
	text, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	skip := map[string]bool{}
	for _, name := range left {
		skip[name] = true
	}
	var out []field
	eachField(text, func(name string, value json.RawMessage) {
		if f := (field{name: name}); !skip[name] && f.take(value) {
			out = append(out, f)
		}
	})
	return out
}

// take reads a value, and tells whether there is one.
func (f *field) take(value json.RawMessage) bool {
	var list []json.RawMessage
	switch value[0] {
	case '[':
		if json.Unmarshal(value, &list) != nil {
			return false
		}
		for _, x := range list {
			f.list = append(f.list, inWords(x))
		}
		return len(list) > 0
	case '{':
		eachField(value, func(name string, value json.RawMessage) {
			f.list = append(f.list, name+" "+inWords(value))
		})
		return len(f.list) > 0
	}
	f.one = inWords(value)
	return f.one != ""
}

// inWords is a value of JSON as a text: an object's fields behind their names.
func inWords(value json.RawMessage) string {
	var text string
	switch {
	case value[0] == '{':
		var words []string
		eachField(value, func(name string, value json.RawMessage) {
			if w := inWords(value); w != "" {
				words = append(words, name+" "+w)
			}
		})
		return strings.Join(words, ", ")
	case value[0] == '"' && json.Unmarshal(value, &text) == nil:
		return text
	case string(value) == "null":
		return ""
	}
	return string(value)
}

func eachField(object json.RawMessage, do func(name string, value json.RawMessage)) {
	d := json.NewDecoder(bytes.NewReader(object))
	_, _ = d.Token()
	for d.More() {
		key, err := d.Token()
		var value json.RawMessage
		if err != nil || d.Decode(&value) != nil {
			return
		}
		do(fmt.Sprint(key), value)
	}
}

// titles are of the lists that a reader looks for.
var titles = map[string]string{
	"databases":   "Its databases:",
	"tablespaces": "Its tablespaces, which come back in postgres/tablespaces of the target:",
	"config":      "Its configuration from outside the data directory:",
	"page_errors": "Pages whose checksum was wrong already:",
	"limits":      "Recovery refuses to start with less than:",
	"paths":       "Their paths, as configured:",
	"exclude":     "Left out, as configured:",
}

// fields writes the single values first, and then each list.
func (p *page) fields(fields []field) {
	for _, f := range fields {
		if f.one != "" {
			p.fact(f.name, "%s", f.one)
		}
	}
	for _, f := range fields {
		title := titles[f.name]
		if title == "" {
			title = f.name + ":"
		}
		p.list(title, len(f.list), func(i int) { p.item("%s", f.list[i]) })
	}
}
