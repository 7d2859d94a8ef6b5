package dump

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"time"
)

// Hashing remembers how far the large files were hashed whose turn was over: the next
// one goes on there. It is lost with the process.
type Hashing struct {
	mu    sync.Mutex
	begun map[string]hashed
}

// hashed is the beginning of a file, as it was then.
type hashed struct {
	sum      hash.Hash
	size     int64 // of the beginning, in bytes
	modified time.Time
}

// take gives what was begun of the file, for one who goes on alone, or a beginning. A nil
// Hashing has never begun anything.
func (h *Hashing) take(path string, modified time.Time) (sum hash.Hash, at int64) {
	if h != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		b, ok := h.begun[path]
		delete(h.begun, path)
		if ok && b.modified.Equal(modified) {
			return b.sum, b.size
		}
	}
	return sha256.New(), 0
}

func (h *Hashing) keep(path string, b hashed) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.begun == nil {
		h.begun = map[string]hashed{}
	}
	h.begun[path] = b
}

// sameContent hashes a file, for as long as ctx lasts, and goes on there the next time.
func (d *Directory) sameContent(ctx context.Context) func(f CommitFile, path string) (bool, error) {
	return func(f CommitFile, path string) (bool, error) {
		if f.SHA256 == "" {
			return false, fmt.Errorf("nothing tells whether it is the run's; if it is not needed, remove %s by hand", path)
		}
		r, err := os.Open(path)
		if err != nil {
			return false, err
		}
		defer r.Close()
		st, err := r.Stat()
		if err != nil {
			return false, err
		}
		sum, at := d.Hashing.take(path, st.ModTime())
		if _, err := r.Seek(at, io.SeekStart); err != nil {
			return false, err
		}
		n, err := io.Copy(sum, untilDone{ctx, r})
		if err != nil {
			d.Hashing.keep(path, hashed{sum, at + n, st.ModTime()})
			return false, err
		}
		return hex.EncodeToString(sum.Sum(nil)) == f.SHA256, nil
	}
}

// untilDone reads until the context ends.
type untilDone struct {
	ctx context.Context
	io.Reader
}

func (r untilDone) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}
