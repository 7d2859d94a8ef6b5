package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// screen is what a terminal would show: enough of one for what bars writes.
type screen struct {
	t     *testing.T
	width int
	lines []string
	row   int
	text  strings.Builder // of the current line
	seen  strings.Builder // all escapes
}

var escape = regexp.MustCompile(`^\x1b\[([0-9]*)([A-Za-z])`)

func (s *screen) Write(p []byte) (int, error) {
	for rest := string(p); rest != ""; {
		if m := escape.FindStringSubmatch(rest); m != nil {
			s.seen.WriteString(m[0][1:] + " ")
			switch m[2] {
			case "A":
				n, _ := strconv.Atoi(m[1])
				s.row -= n
				require.GreaterOrEqual(s.t, s.row, 0, "the cursor leaves the frame")
			case "K":
				s.put(s.text.String())
			case "J":
				s.lines = s.lines[:min(len(s.lines), s.row)]
			case "m":
			default:
				s.t.Errorf("escape %q", m[0])
			}
			rest = rest[len(m[0]):]
			continue
		}
		switch r, n := utf8.DecodeRuneInString(rest); {
		case r == '\n':
			s.row++
			s.text.Reset()
			rest = rest[n:]
		case r == '\r':
			s.text.Reset()
			rest = rest[n:]
		default:
			require.GreaterOrEqual(s.t, r, ' ', "a control character reaches the terminal")
			s.text.WriteRune(r)
			rest = rest[n:]
		}
	}
	return len(p), nil
}

func (s *screen) put(text string) {
	require.Less(s.t, utf8.RuneCountInString(text), max(s.width, 2), "the line wraps: %q", text)
	for len(s.lines) <= s.row {
		s.lines = append(s.lines, "")
	}
	s.lines[s.row] = text
}

func (s *screen) String() string { return strings.Join(s.lines, "\n") }

func num(n int64) *int64 { return &n }

func TestBarsRedrawInPlace(t *testing.T) {
	begin := time.Date(2026, 11, 23, 18, 0, 0, 0, time.UTC)
	good, end := run.Good, begin.Add(1500*time.Millisecond)
	r := run.Record{ID: "20261123t180000z-abcdefgh", Instance: "catalog", Type: "full", State: run.Queued, Stage: "prepare", Created: begin}
	for _, width := range []int{1, 20, 40, 60, 80, 200} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			s := &screen{t: t, width: width}
			b := &bars{out: s, width: func() int { return s.width }, memory: newMemory()}
			r := r
			b.update(r, begin)
			require.Len(t, s.lines, 5)
			r.State, r.Attempt = run.Running, 1
			r.Attempts = []run.Attempt{{Stage: "prepare", Attempt: 1, Started: begin}}
			b.update(r, begin)
			r.Attempts[0].Ended, r.Attempts[0].Outcome = &end, &good
			r.Stage, r.Error = "postgres", "one \x1b[2J bad\nthing "+strings.Repeat("ü", 300)
			r.Attempts = append(r.Attempts, run.Attempt{Stage: "postgres", Attempt: 1, Started: begin})
			r.BytesDone, r.BytesTotal, r.Rate = num(5<<30), num(10<<30), num(100<<20)
			b.update(r, begin.Add(time.Minute))
			b.away("Redis is away, trying for 60s: EOF", begin)
			require.Len(t, s.lines, 7)
			if width == 80 {
				require.Contains(t, s.String(), "prepare    done in 1.5s\n")
				require.Contains(t, s.String(), "postgres   [##########----------] 5.0 GiB of 10.0 GiB (50%), 100 MiB/s, ETA 51s")
				require.Contains(t, s.String(), "eventbus   waiting")
				require.Contains(t, s.String(), `last error: one \u001b[2J bad thing ü`)
			}
			s.width = max(1, width/2) // somebody makes the window narrow
			b.back(begin)
			s.width = width
			r.Stage, r.Error, r.Attempt, r.BytesDone, r.BytesTotal, r.Rate = "archive", "", 0, nil, nil, nil
			r.Attempts[1].Ended, r.Attempts[1].Outcome = &end, &good
			b.end(r, begin.Add(time.Minute))
			require.Len(t, s.lines, 5, "what is no longer to be said is gone")
			if width == 80 {
				require.Contains(t, s.String(), "postgres   done in 1.5s, 5.0 GiB\n")
				require.Contains(t, s.String(), "eventbus   left out\n", "the run is past it")
			}
		})
	}
}

func TestBarsOfAFailedRun(t *testing.T) {
	s := &screen{t: t, width: 100}
	b := &bars{out: s, width: func() int { return 100 }, colour: true, memory: newMemory()}
	begin, bad := time.Now(), run.Erred
	r := run.Record{State: run.Running, Ending: run.Failed, Stage: run.Cleanup, Error: "no space", Created: begin, Attempt: 1,
		Attempts: []run.Attempt{{Stage: "prepare", Started: begin, Ended: &begin, Outcome: &bad}, {Stage: run.Cleanup, Started: begin}}}
	b.update(r, begin)
	require.Contains(t, s.String(), "cleaning up; it will end as failed")
	require.Contains(t, s.String(), "prepare    ended: error")
	require.Contains(t, s.String(), "cleanup    working")
	require.Contains(t, s.String(), "postgres   left out")
	require.Contains(t, s.seen.String(), "[31m")
}

// The real thing: the program on a pseudo-terminal (pty(7)).
func TestWatchOnATerminal(t *testing.T) {
	for name, env := range map[string][]string{"colour": {"TERM=xterm"}, "no colour": {"TERM=xterm", "NO_COLOR=1"}} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.env = env
			r := s.reload(strings.TrimSpace(s.do("backup-all").out))
			r = s.claim(r)
			s.progress(r, 1<<30, 2<<30, 64<<20)
			master, tty := openTerminal(t, 90)
			cmd := s.command("watch")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
			require.NoError(t, cmd.Start())
			require.NoError(t, tty.Close())
			var out lab.Buffer
			read := make(chan struct{})
			go func() {
				defer close(read)
				b := make([]byte, 4096)
				for {
					n, err := master.Read(b)
					_, _ = out.Write([]byte(strings.ReplaceAll(string(b[:n]), "\r\n", "\n")))
					if err != nil {
						return // EIO: the program has ended
					}
				}
			}()
			require.Eventually(t, func() bool { return strings.Contains(out.String(), "(50%), 64.0 MiB/s, ETA 16s") }, patience, 10*time.Millisecond)
			warned := facts
			warned.Warnings = []string{"w"}
			s.succeed(r, warned)
			err := cmd.Wait()
			<-read
			var status *exec.ExitError
			require.ErrorAs(t, err, &status)
			require.Equal(t, exit.Warnings, status.ExitCode())
			show := &screen{t: t, width: 90}
			frames, summary, ok := strings.Cut(out.String(), "\x1b[J"+"run ")
			require.True(t, ok, "the summary follows the last frame: %q", out.String())
			_, _ = show.Write([]byte(frames + "\x1b[J"))
			require.Len(t, show.lines, 5)
			require.Contains(t, show.String(), "prepare    done in ")
			require.Contains(t, summary, "warning   w")
			require.Equal(t, name == "colour", strings.Contains(out.String(), "\x1b[32m"))
		})
	}
}

// openTerminal makes a pseudo-terminal of the given width.
func openTerminal(t *testing.T, width uint16) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: width}))
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	return master, tty
}

func TestLinesSayAChangeAtOnceAndProgressNowAndThen(t *testing.T) {
	var out, err strings.Builder
	l := &lines{out: &out, err: &err}
	at := time.Date(2026, 11, 23, 18, 0, 0, 0, time.UTC)
	r := run.Record{State: run.Queued, Stage: "prepare"}
	count := func() int { return strings.Count(out.String(), "\n") }
	l.update(r, at)
	require.Equal(t, 1, count())
	l.update(r, at.Add(time.Second))
	require.Equal(t, 1, count())
	r.State, r.Attempt = run.Running, 1
	l.update(r, at.Add(time.Second))
	require.Equal(t, 2, count())
	r.BytesDone = num(1)
	l.update(r, at.Add(5900*time.Millisecond))
	require.Equal(t, 2, count())
	l.update(r, at.Add(6*time.Second))
	require.Equal(t, 3, count())
	r.Stage, r.Attempt = "postgres", 0
	l.update(r, at.Add(6*time.Second))
	r.Cancel = true
	l.update(r, at.Add(6*time.Second))
	require.Equal(t, 5, count())
	require.Contains(t, out.String(), "postgres: waits to begin, a cancel was asked for")
	require.Empty(t, err.String())
}

func TestWords(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 150 << 20: "150 MiB", 1<<63 - 1: "8.0 EiB"} {
		require.Equal(t, want, exit.Size(n))
	}
	for d, want := range map[time.Duration]string{-time.Second: "0.0s", 1500 * time.Millisecond: "1.5s", 59 * time.Second: "59s", 61 * time.Second: "1m01s",
		3661 * time.Second: "1h01m", 49 * time.Hour: "2d01h"} {
		require.Equal(t, want, standing.Span(d))
	}
	require.Equal(t, `a\x80b\u202e\u0007 c`, exit.Printable("a\x80b\u202e\a\nc"))
	r := run.Record{BytesDone: num(20), BytesTotal: num(10), Rate: num(0)}
	require.Equal(t, "20 B of 10 B (100%), 0 B/s", standing.Progress(r), "more than expected is no more than all")
	r = run.Record{BytesDone: num(0), BytesTotal: num(1<<63 - 1), Rate: num(1)}
	require.NotContains(t, standing.Progress(r), "ETA", "a time beyond all use is none")
	require.Empty(t, standing.Progress(run.Record{}))
	require.Equal(t, "5 B", standing.Progress(run.Record{BytesDone: num(5), BytesTotal: nil}))
	require.Equal(t, "0 B of 0 B", standing.Progress(run.Record{BytesDone: num(0), BytesTotal: num(0), Rate: nil}))
}

func TestWhereBetweenAttempts(t *testing.T) {
	now := time.Now()
	over := run.Interrupted
	r := run.Record{State: run.Running, Stage: "archive", Attempt: 1, Node: "host1", Attempts: []run.Attempt{{Stage: "archive", Attempt: 1, Node: "host1", Started: now}}}
	require.Equal(t, "archive: attempt 1 on host1", standing.Where(r, now))
	r.Attempts[0].Ended, r.Attempts[0].Outcome = &now, &over
	require.Equal(t, "archive: attempt 1 is over, waits for a worker", standing.Where(r, now))
	later := now.Add(time.Minute)
	r.NotBefore = &later
	require.Equal(t, "archive: attempt 1 ended badly, tries again", standing.Where(r, now))
}
