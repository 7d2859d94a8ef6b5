package pipeline

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"catalog-backup/shared/lab/askew"

	"github.com/stretchr/testify/require"
)

// skewed is this test binary with an asynq whose clock is off, with its
// environment, built once.
func skewed(t *testing.T, env []string, off time.Duration) (string, []string) {
	skewedOnce.Do(func() {
		if skewedDir, skewedErr = os.MkdirTemp("", "cb-skewed-"); skewedErr == nil {
			skewedErr = askew.Test("catalog-backup/worker/pipeline", filepath.Join(skewedDir, "pipeline.test"))
		}
	})
	require.NoError(t, skewedErr)
	return filepath.Join(skewedDir, "pipeline.test"), append(env, askew.Env+"="+off.String())
}

var (
	skewedOnce sync.Once
	skewedDir  string
	skewedErr  error
)
