package archive

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// childRoot is set in a process that asUser has started.
const childRoot = "ARCHIVE_TEST_ROOT"

// asUser runs one test of this binary as nobody, with root as its directory: only a
// process of its own can give up rights in all its threads. That test returns at
// once where childRoot is not set.
func asUser(t *testing.T, test, root string) {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		require.NoError(t, os.Chmod(d, 0755))
	}
	bin := filepath.Join(dir, "test")
	require.NoError(t, os.WriteFile(bin, must(os.ReadFile(os.Args[0])), 0755))
	require.NoError(t, os.Chmod(bin, 0755))
	cmd := exec.Command(bin, "-test.run=^"+test+"$", "-test.v")
	cmd.Env = []string{childRoot + "=" + root, "PATH=" + os.Getenv("PATH"), "TMPDIR=/tmp"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+test)
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
