package redisowner

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestMain makes the test binary an owner that a test can stop and kill.
func TestMain(m *testing.M) {
	if path := os.Getenv("REDISOWNER_TEST_LOCK"); path != "" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err == nil {
			err = Sign(f, "1.2.3-dirty")
		}
		fmt.Println("signed", err)
		select {}
	}
	os.Exit(m.Run())
}

func place(t *testing.T) (lock string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state", "redis")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	return filepath.Join(dir, "lock")
}

func owner(t *testing.T, lock string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "REDISOWNER_TEST_LOCK="+lock)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "signed <nil>\n", line)
	return cmd
}

// A living owner is named, with what to do; a dead one, and one whose number another
// process has, is not: nobody is told to end a stranger.
func TestOwnerIsNamed(t *testing.T) {
	lock := place(t)
	require.Equal(t, "is a worker running? "+start, Remedy(lock, false))
	cmd := owner(t, lock)
	pid := cmd.Process.Pid
	host, err := os.Hostname()
	require.NoError(t, err)
	who := fmt.Sprintf("worker PID %d (1.2.3-dirty) on host %s keeps it", pid, host)
	for _, held := range []bool{true, false} {
		require.Contains(t, Remedy(lock, held), who+": try again in a minute")
		require.Contains(t, Remedy(lock, held), fmt.Sprintf("(`kill -9 %d`)", pid))
	}
	require.NoError(t, cmd.Process.Signal(syscall.SIGSTOP))
	require.Eventually(t, func() bool { return strings.Contains(Remedy(lock, false), who+" and is stopped") }, 5*time.Second, time.Millisecond)
	require.Contains(t, Remedy(lock, false), fmt.Sprintf("`kill -CONT %d`", pid))
	require.NoError(t, cmd.Process.Kill())
	gone := func() bool { return Remedy(lock, false) == "is a worker running? "+start }
	require.Eventually(t, gone, 5*time.Second, time.Millisecond, "a zombie is gone")
	_ = cmd.Wait()
	require.True(t, gone())
	require.Contains(t, Remedy(lock, true), "`fuser "+lock+"` names it")

	// The number is another process's now: this one's, which began earlier.
	text, err := os.ReadFile(lock)
	require.NoError(t, err)
	var n note
	require.NoError(t, json.Unmarshal(text, &n))
	another := strings.Replace(string(text), fmt.Sprintf(`"pid":%d`, pid), fmt.Sprintf(`"pid":%d`, os.Getpid()), 1)
	another = strings.Replace(another, fmt.Sprintf(`"start":%d`, n.Start), fmt.Sprintf(`"start":%d`, n.Start+1), 1)
	require.NotEqual(t, string(text), another)
	require.NoError(t, os.WriteFile(lock, []byte(another), 0o600))
	require.True(t, gone(), Remedy(lock, false))
}

// A process of another user than the file's is none that we name.
func TestOwnerOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("an ordinary user cannot give a file away; the root run of this test does")
		return
	}
	lock := place(t)
	owner(t, lock)
	require.NoError(t, os.Chown(lock, 65534, 65534))
	require.Equal(t, "is a worker running? "+start, Remedy(lock, false))
}

// Of an owner elsewhere its number says nothing here.
func TestOwnerElsewhere(t *testing.T) {
	lock := place(t)
	pid := owner(t, lock).Process.Pid
	text, err := os.ReadFile(lock)
	require.NoError(t, err)
	boot, space := here()
	host, _ := os.Hostname()
	for name, c := range map[string]struct{ old, new, says string }{
		"another container": {space, "pid:[1]", fmt.Sprintf("end it there (`kill -9 %d`)", pid)},
		"another host":      {boot + `","space":"` + space, `x","space":"y`, "is a worker running?"},
	} {
		changed := strings.Replace(string(text), c.old, c.new, 1)
		if name == "another host" {
			changed = strings.Replace(changed, host, "files2", 1)
		}
		require.NotEqual(t, string(text), changed)
		require.NoError(t, os.WriteFile(lock, []byte(changed), 0o600))
		require.Contains(t, Remedy(lock, false), c.says, name)
		require.Contains(t, Remedy(lock, true), "cannot be looked at from here", name)
	}
	require.NoError(t, os.WriteFile(lock, []byte(strings.Replace(string(text), boot, "x", 1)), 0o600))
	require.Equal(t, "is a worker running? "+start, Remedy(lock, false), "before the last boot")
}

// Whatever is at the lock's place, it is an answer in one line, at once.
func TestSignatureThatMakesNoSense(t *testing.T) {
	for name, plant := range map[string]func(lock string) error{
		"of an earlier version": func(l string) error { return os.WriteFile(l, nil, 0o600) },
		"no JSON":               func(l string) error { return os.WriteFile(l, []byte("{\"pid\":12"), 0o600) },
		"all processes":         func(l string) error { return os.WriteFile(l, []byte(`{"pid":-1,"host":"h","version":"1"}`), 0o600) },
		"init":                  func(l string) error { return os.WriteFile(l, []byte(`{"pid":1,"host":"h","version":"1"}`), 0o600) },
		"a line in a name":      func(l string) error { return os.WriteFile(l, []byte(`{"pid":77,"host":"h\nx","version":"1"}`), 0o600) },
		"a command in a name": func(l string) error {
			return os.WriteFile(l, []byte("{\"pid\":77,\"host\":\"`reboot`\",\"version\":\"1\"}"), 0o600)
		},
		"a fifo": func(l string) error { return unix.Mkfifo(l, 0o600) },
		"a link": func(l string) error { return os.Symlink("/dev/zero", l) },
		"endless": func(l string) error {
			if err := os.WriteFile(l, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(l, 1<<40)
		},
	} {
		lock := place(t)
		require.NoError(t, plant(lock), name)
		for _, held := range []bool{true, false} {
			text := Remedy(lock, held)
			require.NotContains(t, text, "\n", name)
			require.NotContains(t, text, "PID", name)
			require.Contains(t, text, "worker", name)
		}
	}
}

// A full disk is told, and over an earlier signature it keeps nobody from signing.
func TestStateDirectoryThatIsFullOrGone(t *testing.T) {
	lock := place(t)
	state := filepath.Dir(filepath.Dir(lock))
	if os.Geteuid() == 0 {
		require.NoError(t, unix.Mount("tmpfs", state, "tmpfs", 0, "size=64k"))
		t.Cleanup(func() { _ = unix.Unmount(state, unix.MNT_DETACH) })
		require.NoError(t, os.Mkdir(filepath.Dir(lock), 0o700))
		require.NoError(t, os.WriteFile(lock, []byte("before"), 0o600))
		ballast, err := os.Create(filepath.Join(state, "ballast"))
		require.NoError(t, err)
		_, err = ballast.Write(make([]byte, 1<<17))
		require.ErrorIs(t, err, unix.ENOSPC)
		require.NoError(t, ballast.Close())
		require.Contains(t, Remedy(lock, false), "the disk of state_dir "+state+" is full: make room")
		first, err := os.Create(filepath.Join(state, "lock"))
		require.NoError(t, err)
		defer first.Close()
		require.ErrorIs(t, Sign(first, "1"), unix.ENOSPC)
		cmd := owner(t, lock)
		require.NoError(t, cmd.Process.Signal(syscall.SIGSTOP))
		require.Eventually(t, func() bool { return strings.Contains(Remedy(lock, false), "is stopped") }, 5*time.Second, time.Millisecond)
		require.NoError(t, unix.Unmount(state, unix.MNT_DETACH))
	}
	require.NoError(t, os.Rename(state, state+".away"))
	require.Contains(t, Remedy(lock, false), "state_dir "+state+" is not there")
	require.Equal(t, Remedy(lock, true), Place(lock))
}
