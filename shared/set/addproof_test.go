package set

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Verifications that end together lose no proof, and leave no lock.
func TestProofsThatAreAddedTogether(t *testing.T) {
	dir := t.TempDir()
	const n = 8
	done := make(chan error)
	for range n {
		go func() { done <- AddProof(dir, id, Proof{Kind: "verify", At: proofTime, Good: true}) }()
	}
	for range n {
		require.NoError(t, <-done)
	}
	p, err := ReadProofs(dir, id)
	require.NoError(t, err)
	require.Len(t, p.Proofs, n)
	require.Equal(t, []string{id.ProofName()}, namesIn(t, dir))
}

func namesIn(t *testing.T, dir string) []string {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Two hosts: one remembers for a minute that there were no proofs, as an NFS client does.
func TestProofsThatAHostThinksAreNotThere(t *testing.T) {
	dir, at := t.TempDir(), t.TempDir()
	root, err := fs.NewLoopbackRoot(dir)
	require.NoError(t, err)
	never, minute := time.Duration(0), time.Minute
	var st unix.Stat_t
	require.NoError(t, unix.Stat(dir, &st))
	server, err := fuse.NewServer(fs.NewNodeFS(root, &fs.Options{EntryTimeout: &never, AttrTimeout: &never, NegativeTimeout: &minute, RootStableAttr: &fs.StableAttr{Ino: st.Ino, Gen: 1}}),
		at, &fuse.MountOptions{DirectMountStrict: true, EnableLocks: true, DisableReadDirPlus: true})
	require.NoError(t, err)
	go server.Serve()
	require.NoError(t, server.WaitMount())
	t.Cleanup(func() { require.NoError(t, server.Unmount()) })

	_, err = ReadProofs(at, id)
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, AddProof(dir, id, Proof{Kind: "verify", At: proofTime, Good: true}))
	}
	_, err = os.Lstat(filepath.Join(at, id.ProofName()))
	require.ErrorIs(t, err, os.ErrNotExist, "the host does not know it")
	require.NoError(t, AddProof(at, id, Proof{Kind: "drill", At: proofTime, Good: true}))
	p, err := ReadProofs(dir, id)
	require.NoError(t, err)
	require.Len(t, p.Proofs, 4)
}

// What may hold more than could be read of it is not replaced, and that is told.
func TestProofsThatAreNotReplaced(t *testing.T) {
	later := `{"format":"catalog-backup/proof","version":99,"set":"` + string(id) + `","proofs":[{"good":true,"kind":"x","signature":"z"}]}`
	far := filepath.Join(t.TempDir(), "far")
	for name, create := range map[string]func(string) error{
		"later":      func(path string) error { return os.WriteFile(path, []byte(later), 0o600) },
		"later, cut": func(path string) error { return os.WriteFile(path, []byte(later[:len(later)-5]), 0o600) },
		"another":    func(path string) error { return os.WriteFile(path, []byte(`{"format":"x","version":1}`), 0o600) },
		"no version": func(path string) error { return os.WriteFile(path, []byte(`{"proofs":[]}`), 0o600) },
		"large": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, maxProofs+1))
		},
		"fifo":          func(path string) error { return unix.Mkfifo(path, 0o600) },
		"dangling link": func(path string) error { return os.Symlink(far, path) },
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, id.ProofName())
		require.NoError(t, create(path))
		before, err := os.Lstat(path)
		require.NoError(t, err)
		err = AddProof(dir, id, Proof{Kind: "verify", At: proofTime, Good: true})
		require.ErrorContains(t, err, "write no proof over those that cannot be read now", name)
		require.ErrorContains(t, err, "move it away", name)
		after, err := os.Lstat(path)
		require.NoError(t, err)
		require.True(t, os.SameFile(before, after), name)
		require.NotEmpty(t, sample().Summary(dir).ProofProblem, name)
		require.Equal(t, []string{id.ProofName()}, namesIn(t, dir))
	}
}

// A lock that is not given back ends the waiting; one that a kill left is no lock.
func TestLockOfProofs(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "."+id.ProofName()+".lock")
	f, err := os.Create(name)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	_, err = lockProofs(filepath.Join(dir, id.ProofName()), 50*time.Millisecond)
	require.ErrorContains(t, err, "another process has held "+name)
	require.NoError(t, syscall.Flock(int(f.Fd()), syscall.LOCK_UN))
	require.NoError(t, AddProof(dir, id, Proof{Kind: "verify", At: proofTime, Good: true}))
	require.Equal(t, []string{id.ProofName()}, namesIn(t, dir))
}
