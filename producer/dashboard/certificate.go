package dashboard

import (
	"crypto/tls"
	"os"
	"sync"
	"time"
)

// certificates reads certificate and key again when a file changes, so that a renewed
// certificate needs no restart.
type certificates struct {
	certFile, keyFile string

	mu   sync.Mutex
	seen [2]time.Time // modification times of what is loaded
	pair *tls.Certificate
}

func (c *certificates) load() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reload()
}

func (c *certificates) reload() error {
	var seen [2]time.Time
	for i, f := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(f)
		if err != nil {
			return err
		}
		seen[i] = info.ModTime()
	}
	if c.pair != nil && seen == c.seen {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	c.pair, c.seen = &pair, seen
	return nil
}

// get is tls.Config.GetCertificate. Files that are being replaced, or were replaced by
// something wrong, leave the old certificate in use.
func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.reload()
	return c.pair, nil
}
