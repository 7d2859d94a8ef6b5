package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"catalog-backup/shared/config"

	"github.com/stretchr/testify/require"
)

// top is the checkout, seen from this package.
const top = "../.."

// page is one page of the documentation.
type page struct {
	path   string // from the checkout
	text   string
	prose  []string // lines outside of code blocks
	blocks []block
}

// block is a fenced or indented block of code.
type block struct {
	language string
	line     int
	text     string
}

var pages = func() []page {
	paths, _ := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	var out []page
	for _, path := range append(paths, filepath.Join(top, "README.md"), filepath.Join(top, "CHANGELOG.md")) {
		b, err := os.ReadFile(path)
		if err != nil {
			panic(err)
		}
		rel, _ := filepath.Rel(top, path)
		out = append(out, read(rel, string(b)))
	}
	return out
}()

// read cuts a page into prose and blocks of code.
func read(path, text string) page {
	p := page{path: path, text: text}
	var in *block
	blank := true
	for i, line := range strings.Split(text, "\n") {
		fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		indented := strings.HasPrefix(line, "    ")
		switch {
		case isFence && in == nil:
			p.blocks = append(p.blocks, block{language: fence, line: i + 1})
			in = &p.blocks[len(p.blocks)-1]
		case isFence:
			in = nil
		case in != nil:
			in.text += line + "\n"
		case indented && blank:
			p.blocks = append(p.blocks, block{line: i, text: line + "\n"})
		case indented && len(p.blocks) > 0 && p.blocks[len(p.blocks)-1].line+strings.Count(p.blocks[len(p.blocks)-1].text, "\n") == i:
			p.blocks[len(p.blocks)-1].text += line + "\n"
		default:
			p.prose = append(p.prose, line)
		}
		blank = strings.TrimSpace(line) == "" || (blank && indented)
	}
	return p
}

var spanRE = regexp.MustCompile("`([^`\n]+)`")

// spans are the pieces of code in running text.
func (p page) spans() []string {
	var out []string
	for _, m := range spanRE.FindAllStringSubmatch(strings.Join(p.prose, "\n"), -1) {
		out = append(out, m[1])
	}
	return out
}

// commands are all lines of code that a reader may type.
func (p page) commands() []string {
	out := p.spans()
	for _, b := range p.blocks {
		if slices.Contains([]string{"yaml", "ini", "json", "sql", "python"}, b.language) {
			continue
		}
		lines := strings.Split(strings.ReplaceAll(b.text, "\\\n", " "), "\n")
		for _, line := range lines {
			line = strings.TrimSpace(line)
			if b.language == "console" { // what is not typed is output
				typed, ok := strings.CutPrefix(line, "# ")
				if !ok {
					typed, ok = strings.CutPrefix(line, "$ ")
				}
				if !ok {
					continue
				}
				line = typed
			}
			out = append(out, line)
		}
	}
	return out
}

func TestDocsLinks(t *testing.T) {
	linkRE := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	checked := 0
	for _, p := range pages {
		for _, m := range linkRE.FindAllStringSubmatch(strings.Join(p.prose, "\n"), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				require.True(t, strings.HasPrefix(target, "https://"), "%s: %s", p.path, target)
				continue
			}
			checked++
			path := p.path
			if target != "" {
				path = filepath.Join(filepath.Dir(p.path), target)
				require.FileExists(t, filepath.Join(top, path), "%s links to it", p.path)
			}
			if anchor != "" {
				require.Contains(t, anchors(t, path), anchor, "%s links to %s", p.path, m[1])
			}
		}
	}
	require.Greater(t, checked, 50)
}

// anchors are the names that GitHub gives a page's headings.
func anchors(t *testing.T, path string) []string {
	drop := regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	for _, p := range pages {
		if p.path != path {
			continue
		}
		var out []string
		for _, line := range p.prose {
			if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
				out = append(out, strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(title), ""), " ", "-"))
			}
		}
		return out
	}
	t.Fatalf("%s is no page", path)
	return nil
}

// Every command of ours in the documentation is one that there is, with flags that
// there are. Upper-case words stand for values.
func TestDocsCommands(t *testing.T) {
	checked := map[string]bool{}
	for _, p := range pages {
		for _, line := range p.commands() {
			for _, args := range ours(line) {
				key := strings.Join(args, " ")
				if checked[key] {
					continue
				}
				checked[key] = true
				out, err := exec.Command(filepath.Join(programs, args[0]), append(args[1:], "--help")...).CombinedOutput()
				require.NoError(t, err, "%s: %s\n%s", p.path, key, out)
				if len(args) > 1 && !strings.HasPrefix(args[1], "-") {
					verb := strings.ReplaceAll(args[1], "_", "-")
					require.Regexp(t, `(?m)^  `+args[0]+` `+regexp.QuoteMeta(verb)+`\b`, string(out), "%s: %s", p.path, key)
				}
			}
		}
	}
	for _, verb := range []string{"producer backup-all", "producer status", "producer watch", "producer list", "producer show SET", "producer cancel", "producer schedule run", "producer schedule list", "producer schedule explain",
		"producer health", "producer dashboard", "worker health", "worker run", "worker verify", "worker restore", "worker list"} {
		found := false
		for c := range checked {
			found = found || strings.HasPrefix(c, verb)
		}
		require.True(t, found, "the documentation never shows %s", verb)
	}
}

// ours are the calls of our programs in a line of shell.
func ours(line string) [][]string {
	var out [][]string
	line = regexp.MustCompile(`"[^"]*"`).ReplaceAllString(line, "VALUE")
	for _, part := range regexp.MustCompile(`\|\||&&|;|\||\bsudo `).Split(line, -1) {
		part = regexp.MustCompile(`^(\S+ ){5}\s*root\s+`).ReplaceAllString(strings.TrimSpace(part), "") // a line of cron
		part = regexp.MustCompile(`\s*(2?>&?\s*\S+)`).ReplaceAllString(part, "")
		words := strings.Fields(part)
		if len(words) < 2 {
			continue
		}
		name := filepath.Base(words[0])
		plain := words[0] == name || strings.HasPrefix(words[0], "/usr/local/bin/") || strings.HasPrefix(words[0], "bin/")
		if name == "alation_action" && plain && words[1] == "backup_all" {
			name = "producer" // the same program under another name
		}
		verb := regexp.MustCompile(`^(--?)?[a-z][a-z_-]+$`).MatchString(words[1])
		if (name == "producer" || name == "worker") && plain && verb {
			out = append(out, append([]string{name}, words[1:]...))
		}
	}
	return out
}

func TestDocsMakeTargets(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(top, "Makefile"))
	require.NoError(t, err)
	targetRE := regexp.MustCompile(`(?m)^([a-z][a-z%-]*):`)
	var targets []string
	for _, m := range targetRE.FindAllStringSubmatch(string(makefile), -1) {
		targets = append(targets, m[1])
	}
	checked := 0
	for _, p := range pages {
		for _, line := range p.commands() {
			m := regexp.MustCompile(`^make ([a-z][a-z-]*)`).FindStringSubmatch(line)
			if m == nil {
				continue
			}
			checked++
			pattern := regexp.MustCompile(`^bench-(postgres|files|eventbus|restore)$`)
			require.True(t, slices.Contains(targets, m[1]) || pattern.MatchString(m[1]) && slices.Contains(targets, "bench-%"), "%s: make %s", p.path, m[1])
		}
	}
	require.Greater(t, checked, 8)
}

// Keys in examples and in running text are keys that there are; whole examples load.
func TestDocsConfiguration(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("x\n"), 0o600))
	secrets := regexp.MustCompile(`(password_file|dsn_file): \S+`)
	none := func(string) string { return "" }
	complete := 0
	for _, p := range pages {
		for _, b := range p.blocks {
			if b.language != "yaml" {
				continue
			}
			text := secrets.ReplaceAllString(b.text, "$1: "+secret)
			whole := strings.HasPrefix(text, "instance:") && strings.Contains(text, "dsn:")
			if !strings.HasPrefix(text, "instance:") {
				text = "instance: catalog\n" + text
			}
			c, err := config.Parse(p.path, []byte(text), none)
			require.NoError(t, err, "%s, line %d", p.path, b.line)
			if whole {
				require.NoError(t, c.ForWorker(), "%s, line %d", p.path, b.line)
				complete++
			}
		}
		for _, s := range p.spans() {
			s, _, _ = strings.Cut(s, ":")
			if regexp.MustCompile(`^(redis|postgres|eventbus|files|archive|alation|queue|log|worker|schedule|dashboard)\.[a-z_.]+$`).MatchString(s) {
				require.True(t, isKey(s), "%s: %s is no key", p.path, s)
			}
		}
	}
	require.Equal(t, 2, complete, "README.md and docs/configuration.md have a complete example each")
}

func isKey(name string) bool {
	if name == "alation.backup.restore_file" || name == "alation.backup.eb_restore_file" { // the catalog's own, in the tables for those who come from it
		return true
	}
	for _, k := range config.Keys {
		if k.Name == name || k.Secret && k.Name+"_file" == name || strings.HasPrefix(k.Name, name+".") {
			return true
		}
	}
	return false
}

// Files of the project that the documentation names are there.
func TestDocsPaths(t *testing.T) {
	pathRE := regexp.MustCompile(`^(worker|producer|shared|docs|\.ci)/[A-Za-z0-9_./-]*$`)
	checked := 0
	for _, p := range pages {
		require.False(t, strings.Contains(p.text, "@@"), "%s has a gap", p.path)
		for _, s := range p.spans() {
			if pathRE.MatchString(s) {
				checked++
				_, err := os.Stat(filepath.Join(top, s))
				require.NoError(t, err, p.path)
			}
		}
	}
	require.Greater(t, checked, 20)
}

// What the documentation calls a stage, a room or an exit code is one.
func TestDocsNameEveryRoom(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(top, "docs/architecture.md"))
	require.NoError(t, err)
	for _, where := range []string{"worker", "shared"} {
		entries, err := os.ReadDir(filepath.Join(top, where))
		require.NoError(t, err)
		for _, e := range entries {
			if e.IsDir() {
				require.Contains(t, string(text), fmt.Sprintf("      %s/ ", e.Name()), "the rooms in docs/architecture.md")
			}
		}
	}
}

// jsonExample is the example of a command in docs/exit-codes.md.
func jsonExample(t *testing.T, command string) string {
	text, err := os.ReadFile(filepath.Join(top, "docs/exit-codes.md"))
	require.NoError(t, err)
	m := regexp.MustCompile("(?s)<!-- json: " + regexp.QuoteMeta(command) + " -->\n```json\n(.*?)```").FindSubmatch(text)
	require.NotNil(t, m, command)
	return string(m[1])
}

// shape is a JSON value with its fields' names, in their order and without values.
func shape(t *testing.T, text string) []string {
	t.Helper()
	var fields []string
	for _, m := range regexp.MustCompile(`(?m)^  "([a-z_]+)":`).FindAllStringSubmatch(text, -1) {
		fields = append(fields, m[1])
	}
	require.True(t, json.Valid([]byte(text)), text)
	return fields
}
