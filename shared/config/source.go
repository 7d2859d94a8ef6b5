package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// value is one key's text with the place it came from.
type value struct {
	text string
	list []string // set where a list was given
	file string
	line int

	plans []planEntry // of schedules
}

func (v value) scalar() error {
	if v.list != nil {
		return errors.New("a list is given")
	}
	return nil
}

// source is the file and the environment, flattened to dotted keys.
type source struct {
	file   string
	values map[string]value
	// forWorker is what keeps a worker from running, but no producer.
	forWorker error
	// forDashboard is what keeps the dashboard from running, but nothing else.
	forDashboard error
}

func (s *source) err(key, problem, remedy string) error {
	e := &Error{File: s.file, Key: key, Problem: problem, Remedy: remedy}
	if v, ok := s.values[key]; ok {
		e.File, e.Line = v.file, v.line
	}
	return e
}

func (s *source) hasAny(prefix string) bool {
	for k := range s.values {
		if strings.HasPrefix(k, prefix) {
			return true
		}
	}
	return false
}

// first is the alphabetically first of the keys below a section that are set.
func (s *source) first(prefix string) string {
	names := slices.Sorted(maps.Keys(s.values))
	i := slices.IndexFunc(names, func(k string) bool { return strings.HasPrefix(k, prefix) })
	if i < 0 {
		return ""
	}
	return names[i]
}

var yamlLine = regexp.MustCompile(`line (\d+): (.*)`)

func readYAML(file string, text []byte) (*source, error) {
	s := &source{file: file, values: map[string]value{}}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		e := &Error{File: file, Problem: err.Error(), Remedy: "mend the YAML"}
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			e.Line, _ = strconv.Atoi(m[1])
			e.Problem = m[2]
		}
		if strings.Contains(err.Error(), "unknown anchor") {
			// The parser would repeat the text, which may be an unquoted secret.
			e.Problem, e.Remedy = "a value begins with * and is no alias of YAML", "put it in quotes"
		}
		return nil, e
	}
	if len(doc.Content) == 0 {
		return nil, &Error{File: file, Key: "instance", Problem: "the file is empty", Remedy: "see docs/configuration.md for a complete example"}
	}
	if root := doc.Content[0]; root.Kind != yaml.MappingNode {
		return nil, &Error{File: file, Line: root.Line, Problem: "the file holds no keys", Remedy: "see docs/configuration.md for a complete example"}
	}
	if err := s.flatten("", doc.Content[0]); err != nil {
		return nil, err
	}
	if err := s.readSecretFiles(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *source) flatten(prefix string, n *yaml.Node) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if prefix == plansKey {
		return s.readPlans(n)
	}
	switch n.Kind {
	case yaml.MappingNode:
		return s.flattenMapping(prefix, n)
	case yaml.SequenceNode:
		v := value{file: s.file, line: n.Line, list: []string{}}
		for _, e := range n.Content {
			if e.Kind == yaml.AliasNode {
				e = e.Alias
			}
			if e.Kind != yaml.ScalarNode {
				return &Error{File: s.file, Line: e.Line, Key: prefix, Problem: "an entry of the list is not a plain value", Remedy: "write one value an entry"}
			}
			v.list = append(v.list, e.Value)
		}
		return s.put(prefix, n.Line, v)
	default:
		if n.Tag == "!!null" {
			if k, ok := keyByName(prefix); ok && k.Kind == kindList {
				return s.put(prefix, n.Line, value{file: s.file, line: n.Line, list: []string{}})
			}
			if isSection(prefix) {
				return nil
			}
			return &Error{File: s.file, Line: n.Line, Key: prefix, Problem: "has no value", Remedy: "give one, or leave the key out"}
		}
		return s.put(prefix, n.Line, value{text: n.Value, file: s.file, line: n.Line})
	}
}

func (s *source) flattenMapping(prefix string, n *yaml.Node) error {
	if prefix != "" && !isSection(prefix) {
		if k, ok := keyByName(prefix); ok {
			return &Error{File: s.file, Line: n.Line, Key: prefix, Problem: "keys are given below it", Remedy: "it takes " + k.Kind}
		}
		return s.put(prefix, n.Line, value{}) // says that it is not a key; an alias that contains itself ends here too
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		name := k.Value
		if prefix != "" {
			name = prefix + "." + name
		}
		if _, twice := s.values[name]; twice || seen[name] {
			return &Error{File: s.file, Line: k.Line, Key: name, Problem: "stands twice", Remedy: "keep one"}
		}
		seen[name] = true
		if err := s.flatten(name, n.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (s *source) put(key string, line int, v value) error {
	base, isFile := strings.CutSuffix(key, "_file")
	k, ok := keyByName(key)
	if !ok && isFile {
		if k, ok = keyByName(base); ok && !k.Secret {
			ok = false
		}
	}
	if !ok {
		e := &Error{File: s.file, Line: line, Key: key, Problem: "is not a key", Remedy: "see docs/configuration.md for all keys"}
		if isSection(key) {
			e.Problem, e.Remedy = "is a section and takes no plain value", "write its keys below it"
		} else if near := nearest(key); near != "" {
			e.Problem, e.Remedy = "is not a key", "did you mean "+near+"?"
		}
		return e
	}
	s.values[key] = v
	return nil
}

// unreadable keeps the error of a secret that only a worker or the dashboard needs
// for ForWorker or ForDashboard: a user of the producer need not be able to read it.
func (s *source) unreadable(k Key, err *Error) error {
	if strings.HasPrefix(k.Name, "redis.") {
		return err
	}
	if strings.HasPrefix(k.Name, "dashboard.") {
		if s.forDashboard == nil {
			s.forDashboard = err
		}
		return nil
	}
	if s.forWorker == nil {
		s.forWorker = err
	}
	return nil
}

// readSecretFiles replaces every <secret>_file by the content of its file.
func (s *source) readSecretFiles() error {
	for _, k := range Keys {
		if !k.Secret {
			continue
		}
		v, ok := s.values[k.Name+"_file"]
		if !ok {
			continue
		}
		if _, both := s.values[k.Name]; both {
			return &Error{File: v.file, Line: v.line, Key: k.Name + "_file", Problem: k.Name + " is set too", Remedy: "keep one of the two"}
		}
		b, err := os.ReadFile(v.text)
		if err != nil {
			err := &Error{File: v.file, Line: v.line, Key: k.Name + "_file", Problem: "cannot read the secret: " + err.Error(), Remedy: "name a file that this user may read"}
			if err := s.unreadable(k, err); err != nil {
				return err
			}
			delete(s.values, k.Name+"_file")
			continue
		}
		s.values[k.Name] = value{text: strings.TrimRight(string(b), "\r\n"), file: v.file, line: v.line}
		delete(s.values, k.Name+"_file")
	}
	return nil
}

func applyEnvironment(s *source, getenv func(string) string) error {
	for _, k := range Keys {
		env := k.Env()
		text := getenv(env)
		if k.Secret {
			if f := getenv(env + "_FILE"); f != "" {
				if text != "" {
					return &Error{File: "environment variable " + env + "_FILE", Key: k.Name, Problem: env + " is set too", Remedy: "keep one of the two"}
				}
				b, err := os.ReadFile(f)
				if err != nil {
					err := &Error{File: "environment variable " + env + "_FILE", Key: k.Name, Problem: "cannot read the secret: " + err.Error(), Remedy: "name a file that this user may read"}
					if err := s.unreadable(k, err); err != nil {
						return err
					}
					continue
				}
				text, env = strings.TrimRight(string(b), "\r\n"), env+"_FILE"
			}
		}
		if text == "" {
			continue
		}
		v := value{text: text, file: "environment variable " + env}
		if k.Kind == kindList {
			v = value{list: splitList(text), file: v.file}
		}
		if k.Name == "redis.address" {
			delete(s.values, "redis")
		}
		if k.Name == "redis" && text == "embedded" {
			for _, o := range Keys {
				if strings.HasPrefix(o.Name, "redis.") {
					delete(s.values, o.Name)
				}
			}
		}
		s.values[k.Name] = v
	}
	return nil
}

func splitList(s string) []string {
	out := []string{}
	for _, e := range strings.Split(s, ",") {
		if e = strings.TrimSpace(e); e != "" {
			out = append(out, e)
		}
	}
	return out
}

func keyByName(name string) (Key, bool) {
	for _, k := range Keys {
		if k.Name == name {
			return k, true
		}
	}
	return Key{}, false
}

func isSection(name string) bool {
	for _, k := range Keys {
		if strings.HasPrefix(k.Name, name+".") {
			return true
		}
	}
	return false
}

// nearest is the known key most like name, or "" where none is near.
func nearest(name string) string {
	best, at := "", min(4, len(name)/2+1)
	for _, k := range Keys {
		if d := distance(name, k.Name); d < at {
			best, at = k.Name, d
		}
	}
	if best != "" {
		return best
	}
	for _, k := range Keys { // the right word in the wrong section
		if strings.HasSuffix(k.Name, "."+name[strings.LastIndexByte(name, '.')+1:]) {
			return k.Name
		}
	}
	return ""
}

// distance is the edit distance of two keys.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diag, row[j] = row[j], min(row[j]+1, row[j-1]+1, diag+cost)
		}
	}
	return row[len(b)]
}

// Reference is docs/configuration.md's table of keys, in Markdown.
func Reference() string {
	var b strings.Builder
	b.WriteString("| key | takes | default | meaning | environment |\n|---|---|---|---|---|\n")
	for _, k := range Keys {
		def := k.Default
		if def != "" {
			def = "`" + def + "`"
		}
		doc := k.Doc
		if k.Secret {
			doc += " A secret: also by `" + k.Name + "_file`, and never shown."
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | `%s` |\n", k.Name, k.Kind, def, doc, k.Env())
	}
	return b.String()
}
