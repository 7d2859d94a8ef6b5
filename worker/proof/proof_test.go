package proof

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"
	"catalog-backup/worker/restore"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

var ctx = context.Background()

const patience = 30 * time.Second

// victimEnv makes this program a worker whose verification never ends: Redis's
// socket and the dump directory, for a parent that kills it.
const victimEnv = "PROOF_VICTIM"

func TestMain(m *testing.M) {
	if text := os.Getenv(victimEnv); text != "" {
		victim(text)
	}
	os.Exit(m.Run())
}

// place is a Redis, a dump directory and a verifier.
type place struct {
	*Verifier
	t     *testing.T
	srv   *lab.RedisServer
	rdb   *redis.Client
	now   time.Time
	begun chan string // sets whose verification has begun
	end   chan error  // how it ends
	good  bool
	mu    sync.Mutex
}

func newPlace(t *testing.T) *place {
	x := &place{t: t, srv: lab.Redis(t), now: time.Date(2026, 11, 23, 4, 0, 30, 0, time.UTC), begun: make(chan string, 10), end: make(chan error, 10), good: true}
	x.rdb = x.srv.Client()
	t.Cleanup(func() { _ = x.rdb.Close() })
	dir := t.TempDir()
	x.Verifier = New(x.params(x.rdb, dir))
	x.set("202611220000_10-0-0-147420", "catalog")
	x.set("202611230000_10-0-0-147420", "catalog")
	x.set("202611240000_10-0-0-147420", "another")
	return x
}

func (x *place) params(rdb *redis.Client, dir string) Params {
	log := logrus.New()
	log.SetOutput(io.Discard)
	now := func() time.Time { x.mu.Lock(); defer x.mu.Unlock(); return x.now }
	return Params{Runs: run.NewStore(rdb, now, time.Hour), Store: schedule.NewStore(rdb, "catalog", now), Dir: dir, Instance: "catalog", Node: "host1",
		Crashes: 2, Now: now, Log: log, Look: 5 * time.Millisecond, Mask: func(s string) string { return s },
		Verify: func(ctx context.Context, s *restore.Set) (*restore.Report, error) {
			x.begun <- string(s.ID())
			select {
			case err := <-x.end:
				r := &restore.Report{Set: string(s.ID()), Good: x.good}
				if !x.good {
					r.Damage, r.DamageTotal = []restore.Damage{{Archive: "a.tar.gz", Entry: "files/x", Problem: "it is not what the manifest says"}}, 7
				}
				return r, err
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}
}

// set puts a manifest into the dump directory.
func (x *place) set(id, instance string) {
	x.t.Helper()
	m := set.Manifest{Format: set.FormatName, Version: set.FormatVersion, Set: id, Instance: instance, Type: set.Full,
		Archives: []set.Archive{{Kind: set.MainArchive, Name: id + "_alation_backup.tar.gz", Size: 1, SHA256: "00"}}}
	b, err := json.Marshal(m)
	require.NoError(x.t, err)
	require.NoError(x.t, os.WriteFile(filepath.Join(x.p.Dir, set.ID(id).ManifestName()), b, 0o600))
}

func tick() task.Tick {
	at := time.Date(2026, 11, 23, 4, 0, 0, 0, time.UTC)
	return task.Tick{Install: "e", Instance: "catalog", Plan: "check", At: at, Job: "verify", Overlap: "skip", Until: at.Add(24 * time.Hour)}
}

func (x *place) deliver() error {
	b, err := json.Marshal(tick())
	require.NoError(x.t, err)
	return x.ProcessTask(ctx, asynq.NewTask(task.VerifyType, b))
}

func (x *place) result() schedule.Tick {
	x.t.Helper()
	t, ok, err := x.p.Store.Tick(ctx, "check", tick().At)
	require.NoError(x.t, err)
	require.True(x.t, ok)
	return t
}

// wait gives what arrives on c.
func wait[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing happens")
		panic("")
	}
}

func (x *place) openRun() run.Record {
	x.t.Helper()
	r, err := x.p.Runs.Start(ctx, run.Request{ID: "20261123t184702z-abcdefgh", Instance: "catalog", Requested: "full", Type: "full", FirstStage: run.Prepare, Epoch: "x"})
	require.NoError(x.t, err)
	return r
}

func TestTheNewestSetIsVerified(t *testing.T) {
	x := newPlace(t)
	x.end <- nil
	require.NoError(t, x.deliver())
	require.Equal(t, "202611230000_10-0-0-147420", wait(t, x.begun))
	got := x.result()
	require.Equal(t, schedule.Good, got.Result)
	require.Equal(t, "202611230000_10-0-0-147420", *got.Set)
	require.NoError(t, x.deliver(), "delivered again")
	require.Empty(t, x.begun, "done is done")
}

func TestDamageAndFailure(t *testing.T) {
	x := newPlace(t)
	x.good = false
	x.end <- nil
	require.NoError(t, x.deliver())
	require.Equal(t, schedule.Damage, x.result().Result)
	require.Equal(t, "7 findings, the first: a.tar.gz: files/x: it is not what the manifest says; `worker verify 202611230000_10-0-0-147420` shows all", *x.result().Reason)
	p, err := set.ReadProofs(x.p.Dir, "202611230000_10-0-0-147420")
	require.NoError(t, err)
	require.Len(t, p.Proofs, 1)
	require.False(t, p.Proofs[0].Good)

	x = newPlace(t)
	x.end <- errors.New("the disk\ncannot be read")
	require.NoError(t, x.deliver())
	require.Equal(t, schedule.Failed, x.result().Result)
	require.Equal(t, "the disk cannot be read", *x.result().Reason)

	x = newPlace(t)
	require.NoError(t, os.WriteFile(filepath.Join(x.p.Dir, "202611230100_10-0-0-147420_alation_backup.json"), []byte("{half"), 0o600))
	require.NoError(t, x.deliver())
	require.Equal(t, schedule.Damage, x.result().Result, "the newest manifest cannot be read, and an older set is good")
	require.Empty(t, x.begun)

	x = newPlace(t)
	x.p.Dir = t.TempDir()
	require.NoError(t, x.deliver())
	require.Equal(t, schedule.Failed, x.result().Result)
	require.Contains(t, *x.result().Reason, "node host1 has no set of instance catalog")
	x = newPlace(t)
	x.p.Dir = "/nonexistent"
	require.NoError(t, x.deliver())
	require.Equal(t, schedule.Failed, x.result().Result)
}

func TestABackupGoesFirst(t *testing.T) {
	x := newPlace(t)
	r := x.openRun()
	require.ErrorIs(t, x.deliver(), errLater)
	require.Equal(t, "it waits for run "+r.ID+" to end", *x.result().Reason)
	_, err := x.p.Runs.Cancel(ctx, r)
	require.NoError(t, err)

	ended := make(chan error, 1)
	for i := range 5 { // being interrupted is no crash
		go func() { ended <- x.deliver() }()
		wait(t, x.begun)
		r := run.Request{ID: fmt.Sprintf("20261123t18470%dz-abcdefgh", 3+i), Instance: "catalog", Requested: "full", Type: "full", FirstStage: run.Prepare, Epoch: "x"}
		rec, err := x.p.Runs.Start(ctx, r)
		require.NoError(t, err)
		require.ErrorIs(t, wait(t, ended), errLater)
		require.Equal(t, schedule.Verifying, x.result().Result)
		_, err = x.p.Runs.Cancel(ctx, rec)
		require.NoError(t, err)
	}
	x.end <- nil
	require.NoError(t, x.deliver())
	require.Equal(t, schedule.Good, x.result().Result)
}

func TestWhatHasNotBegunByTheNextTick(t *testing.T) {
	x := newPlace(t)
	x.mu.Lock()
	x.now = tick().Until
	x.mu.Unlock()
	x.p.Now = func() time.Time { return tick().At } // this host's clock is behind, and Redis's counts
	require.NoError(t, x.deliver())
	require.Equal(t, schedule.Skipped, x.result().Result)
}

func TestStop(t *testing.T) {
	x := newPlace(t)
	ended := make(chan error, 1)
	go func() { ended <- x.deliver() }()
	wait(t, x.begun)
	require.ErrorIs(t, x.deliver(), errLater, "one at a time")
	x.Stop()
	require.ErrorIs(t, wait(t, ended), errLater)
	require.ErrorIs(t, x.deliver(), errLater)
	require.Equal(t, schedule.Verifying, x.result().Result)
}

func TestAWorkerThatDiesInItAgainAndAgain(t *testing.T) {
	x := newPlace(t)
	for range x.p.Crashes + 1 {
		_, err := x.p.Store.Begun(ctx, "check", tick().At)
		require.NoError(t, err)
	}
	require.NoError(t, x.deliver())
	require.Equal(t, schedule.Failed, x.result().Result)
	require.Equal(t, "the worker died in it 3 times", *x.result().Reason)
}

func TestTasksThatAreNotOurs(t *testing.T) {
	x := newPlace(t)
	require.NoError(t, x.ProcessTask(ctx, asynq.NewTask(task.VerifyType, []byte("{"))))
	require.NoError(t, x.ProcessTask(ctx, asynq.NewTask(task.VerifyType, []byte(`{"instance":"other"}`))))
	require.Empty(t, x.begun)
}

// serve runs asynq's server as the worker does.
func serve(rdb *redis.Client, v *Verifier) (*asynq.Server, error) {
	s := asynq.NewServerFromRedisClient(rdb, asynq.Config{Concurrency: 2, Queues: map[string]int{"catalog": 1}, TaskCheckInterval: 50 * time.Millisecond,
		DelayedTaskCheckInterval: 50 * time.Millisecond, RetryDelayFunc: func(int, error, *asynq.Task) time.Duration { return 0 },
		IsFailure: func(error) bool { return false }, LogLevel: asynq.FatalLevel})
	return s, s.Start(v)
}

func victim(text string) {
	var where [2]string
	if err := json.Unmarshal([]byte(text), &where); err != nil {
		panic(err)
	}
	x := &place{now: tick().At, begun: make(chan string, 1), end: make(chan error)}
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: where[0]})
	if _, err := serve(rdb, New(x.params(rdb, where[1]))); err != nil {
		panic(err)
	}
	fmt.Println("verifying", <-x.begun)
	select {}
}

// A worker is killed in the middle; asynq gives the task to another one, and the
// result is recorded once.
func TestAKilledWorker(t *testing.T) {
	x := newPlace(t)
	queue := task.NewEnqueuer(x.rdb, time.Now)
	require.NoError(t, queue.EnqueueVerify(ctx, tick()))
	where, err := json.Marshal([2]string{x.srv.Addr, x.p.Dir})
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+string(where))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := make(chan string, 1)
	go func() { s := bufio.NewScanner(out); s.Scan(); lines <- s.Text() }()
	require.Equal(t, "verifying 202611230000_10-0-0-147420", wait(t, lines))
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	// A minute later, as far as asynq can see: its lease has run out.
	const lease = "asynq:{catalog}:lease"
	require.NoError(t, x.rdb.ZAddXX(ctx, lease, redis.Z{Score: float64(time.Now().Add(-time.Minute).Unix()), Member: task.VerifyID(tick())}).Err())
	x.end <- nil
	s, err := serve(x.rdb, x.Verifier)
	require.NoError(t, err)
	defer s.Shutdown()
	require.Equal(t, "202611230000_10-0-0-147420", wait(t, x.begun))
	require.Eventually(t, func() bool { return x.result().Result == schedule.Good }, patience, 10*time.Millisecond)
	n, err := x.p.Store.Begun(ctx, "check", tick().At)
	require.NoError(t, err)
	require.Equal(t, 3, n, "two tries, and this question")
}
