package set

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"catalog-backup/shared/lab/faultfs"

	"github.com/stretchr/testify/require"
)

// Proofs that cannot be read for a moment are not replaced by the new one alone.
func TestProofsThatCannotBeReadStay(t *testing.T) {
	f := faultfs.Mount(t, t.TempDir())
	id := ID("202109232027_1-1")
	require.NoError(t, AddProof(f.Backing, id, Proof{Kind: "verify", At: time.Now()}))
	before, err := os.ReadFile(filepath.Join(f.Backing, id.ProofName()))
	require.NoError(t, err)
	for k := 1; ; k++ {
		n, kind := 0, ""
		f.Hook(func(op faultfs.Op) syscall.Errno {
			if strings.HasSuffix(op.Path, id.ProofName()) && op.Kind != faultfs.Flush {
				if n++; n == k {
					kind = op.Kind
					return syscall.EIO
				}
			}
			return 0
		})
		err := AddProof(f.Path, id, Proof{Kind: "verify", At: time.Now(), Good: true})
		f.Hook(nil)
		all, rerr := ReadProofs(f.Backing, id)
		require.NoError(t, rerr)
		require.False(t, all.Proofs[0].Good, "the first proof is still there: operation %d, %s", k, kind)
		if kind == "" {
			require.NoError(t, err)
			require.Len(t, all.Proofs, 2)
			return
		}
		require.NoError(t, os.WriteFile(filepath.Join(f.Backing, id.ProofName()), before, 0o600))
	}
}

// A file system without locks keeps proofs all the same, and nothing beside them.
func TestProofsWithoutLocks(t *testing.T) {
	f := faultfs.Mount(t, t.TempDir())
	for n, errno := range []syscall.Errno{syscall.ENOLCK, syscall.EOPNOTSUPP, syscall.ENOSYS} {
		f.Hook(func(op faultfs.Op) syscall.Errno {
			if op.Kind == faultfs.Lock {
				return errno
			}
			return 0
		})
		require.NoError(t, AddProof(f.Path, id, Proof{Kind: "verify", At: proofTime, Good: true}))
		all, err := ReadProofs(f.Backing, id)
		require.NoError(t, err)
		require.Len(t, all.Proofs, n+1)
		require.Equal(t, []string{id.ProofName()}, namesIn(t, f.Backing))
	}
}
