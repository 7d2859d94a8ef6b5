package set

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	proofWait = 10 * time.Second // how long AddProof waits for another that ends just now
	proofPoll = 20 * time.Millisecond
)

// AddProof writes one more proof beside the manifest of id in dir. Where the file
// there is damaged, what could be read of it is kept; where it cannot be read, is of a
// later version or another size than proofs are, it stays.
func AddProof(dir string, id ID, p Proof) error {
	path := filepath.Join(dir, id.ProofName())
	unlock, err := lockProofs(path, proofWait)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := readProofs(path, id)
	if errors.Is(err, fs.ErrNotExist) {
		if err = writeProofs(path, all, p, writeNew); !errors.Is(err, fs.ErrExist) {
			return err
		}
		// What a network file system remembers as missing is there: its server says so.
		all, err = readProofsThere(path, id)
	}
	if err != nil && !errors.Is(err, errDamagedProofs) {
		return fmt.Errorf("write no proof over those that cannot be read now: %w", err)
	}
	return writeProofs(path, all, p, WriteFile)
}

func writeProofs(path string, all Proofs, p Proof, write func(string, []byte) error) error {
	all.Proofs = append(all.Proofs, *p.brief(provenDamage, provenText))
	if n := len(all.Proofs); n > keptProofs {
		all.Proofs = all.Proofs[n-keptProofs:]
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return write(path, append(b, '\n'))
}

// writeNew is WriteFile for a path that is free, fs.ErrExist if it is not.
func writeNew(path string, content []byte) error {
	return writeFileFrom(path, bytes.NewReader(content), func(from, to string) error {
		err := os.Link(from, to)
		if err == nil || errors.Is(err, fs.ErrExist) {
			return err
		}
		return os.Rename(from, to) // a file system without links
	})
}

// readProofsThere reads proofs that are certainly there: O_CREATE asks the server, where
// a mount would answer from its memory that there are none.
func readProofsThere(path string, id ID) (Proofs, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return Proofs{}, err
	}
	defer f.Close()
	return readProofs(path, id)
}

// lockProofs takes the lock of a file of proofs: of two verifications that end together
// the later one adds to what the other wrote. The lock is a file beside it, which goes
// with the lock. It is open for writing, since over NFS only that is locked at the server.
// A file system that has no locks keeps nobody from writing proofs.
func lockProofs(path string, wait time.Duration) (unlock func(), err error) {
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".lock")
	for end := time.Now().Add(wait); ; time.Sleep(proofPoll) {
		f, err := tryLock(name)
		switch {
		case err == nil:
			return func() {
				if isAt(f, name) == nil {
					_ = os.Remove(name)
				}
				_ = f.Close()
			}, nil
		case errors.Is(err, syscall.ENOLCK), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
			_ = os.Remove(name)
			return func() {}, nil
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return nil, fmt.Errorf("lock the proofs: %w", err)
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("lock the proofs: another process has held %s for %s; if none works on that set, its host is gone or frozen: verify again later", name, wait)
		}
	}
}

// tryLock gives EWOULDBLOCK where another has the lock, or had it until now.
func tryLock(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	for err = syscall.EINTR; errors.Is(err, syscall.EINTR); {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		err = &fs.PathError{Op: "flock", Path: name, Err: err}
	} else {
		err = isAt(f, name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// isAt gives EWOULDBLOCK where the open file is no more the one of that name: it was
// removed by who had the lock before.
func isAt(f *os.File, name string) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, there) {
		return syscall.EWOULDBLOCK
	}
	return err
}
