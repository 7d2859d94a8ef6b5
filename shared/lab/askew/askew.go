// Package askew builds tests whose asynq has a clock that is wrong. asynq reads the
// clock of its host in many places and takes no other; our own packages are given
// theirs. A time namespace does not shift the time of day, and a preloaded library
// does not reach a Go program, so the build gets a copy of asynq with another clock.
package askew

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Env names the variable with the difference of the program's clock to the right time,
// as time.ParseDuration reads it: "1h", "-1h".
const Env = "ASYNQ_CLOCK_OFF"

const asynq = "github.com/hibiken/asynq"

const clock = `package %s

import (
	"os"
	"time"
)

var clockOff, _ = time.ParseDuration(os.Getenv(%q))

func clockNow() time.Time { return time.Now().Add(clockOff) }

func clockUntil(t time.Time) time.Duration { return t.Sub(clockNow()) }

var _ = clockUntil
`

// Test builds the tests of a package ("catalog-backup/…") into the file out. The copy
// of asynq stays in .cache of the repository, so that it is compiled once.
func Test(pkg, out string) error {
	root, module, err := where()
	if err != nil {
		return err
	}
	dir := filepath.Join(root, ".cache", "skew")
	copied := filepath.Join(dir, "asynq")
	if err := replace(module, copied); err != nil {
		return fmt.Errorf("copy asynq with another clock: %w", err)
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		if name == "go.mod" {
			b = fmt.Appendf(b, "\nreplace %s => %s\n", asynq, copied)
		}
		if err := put(filepath.Join(dir, name), b); err != nil {
			return err
		}
	}
	if b, err := exec.Command("go", "test", "-c", "-modfile", filepath.Join(dir, "go.mod"), "-o", out, pkg).CombinedOutput(); err != nil {
		return fmt.Errorf("build the tests of %s with another clock: %w: %s", pkg, err, b)
	}
	return nil
}

// where gives the directories of the repository and of asynq's module.
func where() (root, module string, err error) {
	b, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "catalog-backup", asynq).Output()
	if err != nil {
		return "", "", fmt.Errorf("find asynq's sources: %w", err)
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return "", "", fmt.Errorf("find asynq's sources: %q", b)
	}
	return f[0], f[1], nil
}

// replace copies the module with the other clock.
func replace(module, to string) error {
	changed := map[string]string{} // directory → package
	err := filepath.WalkDir(module, func(path string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(module, path)
		top, _, _ := strings.Cut(rel, string(filepath.Separator))
		switch {
		case err != nil:
			return err
		case d.IsDir() && rel != "." && top != "internal":
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		case rel != "go.mod" && rel != "go.sum" && (!strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go")):
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text := strings.NewReplacer("time.Now()", "clockNow()", "time.Until(", "clockUntil(").Replace(string(b))
		if text != string(b) {
			_, pkg, _ := strings.Cut(text, "\npackage ")
			pkg, _, _ = strings.Cut(pkg, "\n")
			changed[filepath.Dir(rel)] = pkg
			text += "\nvar _ time.Time\n"
		}
		return put(filepath.Join(to, rel), []byte(text))
	})
	if err == nil && (changed["."] == "" || changed["internal/timeutil"] == "") {
		err = errors.New("it reads the clock in other places than before")
	}
	for dir, pkg := range changed {
		if err == nil {
			err = put(filepath.Join(to, dir, "clock_off.go"), fmt.Appendf(nil, clock, pkg, Env))
		}
	}
	return err
}

// put writes a file, unless it is so already.
func put(path string, b []byte) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(b) {
		return nil
	}
	_ = os.Remove(path)
	return os.WriteFile(path, b, 0o644)
}
