package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
)

// KfakeOptions says what broker StartKfake starts. The zero value is one broker
// without login, with its data on disk.
type KfakeOptions struct {
	Dir        string            // where it lives; "" = a throwaway directory, removed by Close
	Nodes      int               // how many brokers the process plays; 0 = 1
	Config     map[string]string // broker settings, e.g. message.max.bytes
	Sync       bool              // sync every batch
	AutoTopics bool              // make a topic when a client asks for it
	ACLs       bool              // enforce access control lists
	Users      []KfakeUser       // logins; any turns SASL on. The first Super one is Broker.Admin, else one of ours
}

// KfakeUser is a login with its rights.
type KfakeUser struct {
	User
	ACLs []kfake.ACL
}

// KfakedConfig is what the program kfaked reads: the options and what was fixed when
// the broker was made, so that it comes back the same.
type KfakedConfig struct {
	KfakeOptions
	Ports   []int
	DataDir string
}

// Kfake starts a throwaway kfake in a process of its own that ends with the test.
func Kfake(t testing.TB, o KfakeOptions) *Broker {
	t.Helper()
	b, err := StartKfake(o)
	if err != nil {
		t.Fatal(err)
	}
	bind(t, "kfake", b)
	return b
}

// StartKfake starts a kfake.
func StartKfake(o KfakeOptions) (_ *Broker, err error) {
	bin, err := kfaked()
	if err != nil {
		return nil, err
	}
	b := &Broker{name: "kfake", probe: probeMetadata}
	if b.root, err = newRoot(o.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.root.remove())
		}
	}()
	b.Root = b.root.dir
	b.DataDir = filepath.Join(b.Root, "data")
	cfg := KfakedConfig{KfakeOptions: o, DataDir: b.DataDir}
	for range max(1, o.Nodes) {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		cfg.Ports = append(cfg.Ports, port)
		b.Brokers = append(b.Brokers, fmt.Sprintf("127.0.0.1:%d", port))
	}
	for _, u := range o.Users {
		if u.Super && b.Admin == nil {
			b.Admin = &u.User
		}
	}
	if len(o.Users) > 0 && b.Admin == nil {
		b.Admin = &User{Mechanism: "PLAIN", Name: adminName, Password: adminName, Super: true}
		cfg.Users = append(slices.Clone(o.Users), KfakeUser{User: *b.Admin})
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(b.Root, "kfaked.json")
	if err = os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	b.spawn = func() (*process, error) {
		cmd := exec.Command(bin, file)
		cmd.Dir, cmd.Env = b.Root, environment()
		return spawn(cmd, b.log(), syscall.SIGKILL)
	}
	return b, b.Start()
}

// kfaked gives the program that plays the broker: $LAB_KFAKED, or it is built into
// the checkout's .cache (go build leaves an up-to-date one alone).
var kfaked = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("LAB_KFAKED"); path != "" {
		return path, nil
	}
	top, err := checkout()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(top, ".cache", "lab")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// Tests of several packages come here at once.
	unlock, err := lockFile(filepath.Join(dir, "kfaked.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	path := filepath.Join(dir, "kfaked")
	cmd := exec.Command("go", "build", "-o", path, "./shared/lab/kfaked")
	cmd.Dir = top
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("lab: build kfaked: %w: %s", err, bytes.TrimSpace(out))
	}
	return path, nil
})

// lockFile waits for an exclusive lock on path and gives the function that frees it.
func lockFile(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lab: lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}
