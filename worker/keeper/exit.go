package keeper

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"unicode"
)

// ExitError says that a tool ended badly.
type ExitError struct {
	Path   string
	Code   int            // exit code; -1 if a signal ended it
	Signal syscall.Signal // 0 if it exited
	Stderr string         // the last lines of its stderr, secret variables blotted out
}

// Error is one line.
func (e *ExitError) Error() string {
	said := "exited with code " + fmt.Sprint(e.Code)
	if e.Signal != 0 {
		said = "was ended by the signal " + e.Signal.String()
	}
	text := filepath.Base(e.Path) + " " + said
	if last := oneLine(e.Stderr); last != "" {
		text += ": " + last
	}
	return text
}

// ExitCode is Code, as os/exec's errors have it.
func (e *ExitError) ExitCode() int { return e.Code }

// oneLine joins the lines of s and drops what could trouble a terminal.
func oneLine(s string) string {
	var lines []string
	for line := range strings.SplitSeq(s, "\n") {
		line = strings.TrimSpace(strings.Map(func(r rune) rune {
			if unicode.IsControl(r) || r == unicode.ReplacementChar {
				return ' '
			}
			return r
		}, line))
		if line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, " | ")
}

// tailSize is how much of stderr an error keeps, in bytes.
const tailSize = 2048

// tail keeps the last tailSize bytes written to it.
type tail struct {
	mu   sync.Mutex
	kept []byte
	cut  bool
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, b[max(0, len(b)-tailSize-1):]...)
	if over := len(t.kept) - tailSize; over > 0 {
		t.kept, t.cut = append(t.kept[:0], t.kept[over:]...), true
	}
	return len(b), nil
}

// text returns whole lines, without the values of variables that look secret.
func (t *tail) text(env []string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := string(t.kept)
	if _, after, ok := strings.Cut(s, "\n"); ok && t.cut && after != "" {
		s = after
	}
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		name = strings.ToUpper(name)
		for _, word := range []string{"PASS", "SECRET", "TOKEN", "KEY", "CIPHER"} {
			if strings.Contains(name, word) && len(value) >= 4 {
				s = strings.ReplaceAll(s, value, "***")
			}
		}
	}
	return strings.ToValidUTF8(strings.TrimSpace(s), "?")
}
