package restore

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/lab"
	"catalog-backup/worker/eventbus"
	"catalog-backup/worker/stage"
)

// phases ends a restore when a phase begins.
type phases struct {
	stage.NoProgress
	at  string
	end func(error)
}

func (p phases) phase(name string) stage.Progress {
	if name == p.at {
		p.end(errors.New("interrupted by the test"))
	}
	return p
}

func TestRestoreInterruptedSaysWhatIsLeft(t *testing.T) {
	for phase, says := range map[string]string{"verify": "interrupted", "unpack": "nothing there is complete", "postgres": "complete there: files, eventbus; not complete: postgres"} {
		t.Run(phase, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			s, err := Open(t.Context(), source.manifest(source.dump), "")
			require.NoError(t, err)
			o := options(filepath.Join(scratch(t), "target"))
			o.Phase = phases{at: phase, end: cancel}.phase
			_, err = Restore(ctx, s, o)
			require.ErrorContains(t, err, "interrupted by the test")
			require.ErrorContains(t, err, says)
			if phase == "verify" {
				require.NoDirExists(t, o.Target)
				return
			}
			require.ErrorContains(t, err, "remove "+o.Target)
			require.DirExists(t, filepath.Join(o.Target, stagingName))
		})
	}
}

// A bus that goes away while it is loaded: what is on disk is whole.
func TestRestoreBusLostInTheEnd(t *testing.T) {
	other := lab.Kfake(t, lab.KfakeOptions{})
	s, err := Open(t.Context(), source.manifest(source.dump), "")
	require.NoError(t, err)
	o := options(filepath.Join(scratch(t), "target"))
	o.Bus = &eventbus.Options{Brokers: other.Brokers, Budget: time.Second}
	o.Only = []string{EventBusPart}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	o.Phase = phases{at: "load", end: cancel}.phase
	_, err = Restore(ctx, s, o)
	require.ErrorContains(t, err, "is complete, only the loading")
	require.NoDirExists(t, filepath.Join(o.Target, stagingName))
}

// SIGINT in the middle: exit code 4, no child left.
func TestRestoreSignal(t *testing.T) {
	target := filepath.Join(scratch(t), "target")
	cmd := exec.Command(filepath.Join(source.bin, "worker"), "restore", source.manifest(source.dump), "--target", target)
	var errs strings.Builder
	cmd.Stderr = &errs
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(target, "postgres", ".restore"))
		return err == nil
	}, 20*time.Second, time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	<-ended
	require.Equal(t, 4, cmd.ProcessState.ExitCode(), errs.String())
	require.Contains(t, errs.String(), "unfinished")
	out, err := exec.Command("sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").Output()
	require.NoError(t, err)
	require.NotContains(t, string(out), "="+target)
}
