// Package proof verifies the newest set of a node when a tick of a plan asks for it,
// as `worker verify` does, and writes the proof beside the set. It is the handler of
// one type of tasks in the worker's asynq server.
//
// A backup goes first: a verification begins only while no run of the instance is
// open, ends when one is opened, and begins anew after it. What has not begun by the
// plan's next tick is left to that one.
package proof

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"
	"catalog-backup/worker/restore"

	"github.com/hibiken/asynq"
	"github.com/sirupsen/logrus"
)

// Params are what a Verifier works with.
type Params struct {
	Runs     *run.Store
	Store    *schedule.Store
	Dir      string // the node's dump directory
	Instance string
	Node     string
	// Crashes is how often a verification is begun again after the worker died in it.
	Crashes int
	Now     func() time.Time
	Log     logrus.FieldLogger
	Mask    func(string) string
	// Look is how often a verification looks whether a run was opened. Default 2 s.
	Look time.Duration
	// Verify reads the set. Default: restore.Open and restore.Verify.
	Verify func(ctx context.Context, s *restore.Set) (*restore.Report, error)
}

// Verifier does one verification at a time.
type Verifier struct {
	p    Params
	busy sync.Mutex

	mu      sync.Mutex
	stopped bool
	wg      sync.WaitGroup
	stop    context.CancelCauseFunc
	base    context.Context
}

var (
	// errLater makes asynq deliver the task again soon; it never counts.
	errLater    = errors.New("the verification waits; looked at again soon")
	errStopping = errors.New("the worker is stopping")
	errRun      = errors.New("a run was opened, and a backup goes first")
)

// New makes a Verifier.
func New(p Params) *Verifier {
	if p.Look == 0 {
		p.Look = 2 * time.Second
	}
	if p.Verify == nil {
		p.Verify = func(ctx context.Context, s *restore.Set) (*restore.Report, error) {
			return restore.Verify(ctx, s, restore.VerifyOptions{})
		}
	}
	v := &Verifier{p: p}
	v.base, v.stop = context.WithCancelCause(context.Background())
	return v
}

// Stop ends the verification under way, which is delivered again, and waits for it.
func (v *Verifier) Stop() {
	v.mu.Lock()
	v.stopped = true
	v.mu.Unlock()
	v.stop(errStopping)
	v.wg.Wait()
}

// ProcessTask is asynq's handler. Its context ends when asynq gives the task to
// somebody else; then this verification is not needed any more.
func (v *Verifier) ProcessTask(ctx context.Context, t *asynq.Task) error {
	tick, err := task.ReadTick(t)
	if err != nil || tick.Instance != v.p.Instance {
		v.p.Log.WithError(err).Warn("dropped a task that is no verification of ours")
		return nil
	}
	v.mu.Lock()
	if v.stopped {
		v.mu.Unlock()
		return errLater
	}
	v.wg.Add(1)
	v.mu.Unlock()
	defer v.wg.Done()
	if !v.busy.TryLock() {
		return errLater
	}
	defer v.busy.Unlock()
	old, known, err := v.p.Store.Tick(ctx, tick.Plan, tick.At)
	if err != nil {
		return err
	}
	if known && old.Result.Final() {
		return nil
	}
	now, err := v.p.Runs.Time(ctx) // the scheduler may be on another host
	if err != nil {
		return err
	}
	if !now.Before(tick.Until) {
		return v.note(ctx, tick, schedule.Tick{Result: schedule.Skipped, Reason: reason("no worker could do it before the plan's next tick: none ran, or runs were active")})
	}
	if id, err := v.openRun(ctx); err != nil || id != "" {
		if err != nil {
			return err
		}
		if err := v.note(ctx, tick, schedule.Tick{Result: schedule.Verifying, Run: &id, Reason: reason("it waits for run %s to end", id)}); err != nil {
			return err
		}
		return errLater
	}
	return v.begin(ctx, tick)
}

// openRun is the id of the instance's open run, "" if there is none.
func (v *Verifier) openRun(ctx context.Context) (string, error) {
	open, err := v.p.Runs.Open(ctx, v.p.Instance)
	if err != nil || len(open) == 0 {
		return "", err
	}
	return open[0], nil
}

// begin verifies the newest set and notes what was found.
func (v *Verifier) begin(ctx context.Context, tick task.Tick) error {
	begun, err := v.p.Store.Begun(ctx, tick.Plan, tick.At)
	if err != nil {
		return err
	}
	if begun > v.p.Crashes+1 {
		return v.note(ctx, tick, schedule.Tick{Result: schedule.Failed, Reason: reason("the worker died in it %d times", begun-1)})
	}
	newest, err := v.newest()
	if err != nil {
		return v.note(ctx, tick, schedule.Tick{Result: schedule.Failed, Reason: v.text(err)})
	}
	if err := v.note(ctx, tick, schedule.Tick{Result: schedule.Verifying, Set: &newest, Reason: reason("on node %s", v.p.Node)}); err != nil {
		return err
	}
	v.p.Log.WithFields(logrus.Fields{"plan": tick.Plan, "set": newest}).Info("verifying the newest set")
	report, err := v.verify(ctx, newest)
	if cause := errors.Is(err, errStopping) || errors.Is(err, errRun) || ctx.Err() != nil; err != nil && cause {
		v.p.Log.WithError(err).WithField("plan", tick.Plan).Info("the verification begins anew later")
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := v.p.Store.HandedBack(back, tick.Plan, tick.At); err != nil {
			v.p.Log.WithError(err).Debug("could not take the try off the count")
		}
		return errLater
	}
	var damaged *restore.DamagedError
	switch {
	case errors.As(err, &damaged):
		return v.note(ctx, tick, schedule.Tick{Result: schedule.Damage, Set: &newest, Reason: v.text(err)})
	case err != nil:
		return v.note(ctx, tick, schedule.Tick{Result: schedule.Failed, Set: &newest, Reason: v.text(err)})
	case !report.Good:
		first := ""
		if len(report.Damage) > 0 {
			first = ", the first: " + report.Damage[0].String()
		}
		return v.note(ctx, tick, schedule.Tick{Result: schedule.Damage, Set: &newest, Reason: v.text(fmt.Errorf("%d findings%s; `worker verify %s` shows all", report.DamageTotal, first, newest))})
	}
	return v.note(ctx, tick, schedule.Tick{Result: schedule.Good, Set: &newest})
}

// newest is the instance's newest set in the dump directory. A manifest that cannot
// be read counts: it may be of the newest set, and must not be passed over in silence. An
// older one is not looked at: its disk, by a link, may hang.
func (v *Verifier) newest() (string, error) {
	names, err := os.ReadDir(v.p.Dir)
	if err != nil {
		return "", fmt.Errorf("list the sets of node %s: %w", v.p.Node, err)
	}
	var ids []string
	for _, n := range names {
		if id, ok := set.IDOfName(n.Name()); ok && n.Name() == id.ManifestName() {
			ids = append(ids, string(id))
		}
	}
	slices.Sort(ids) // they begin with the time, and grow
	for _, id := range slices.Backward(ids) {
		m, err := set.ReadHead(filepath.Join(v.p.Dir, set.ID(id).ManifestName()))
		if err == nil && m.Set == id && m.Instance != v.p.Instance {
			continue
		}
		return id, nil
	}
	return "", fmt.Errorf("node %s has no set of instance %s in %s; make one with `producer backup-all`", v.p.Node, v.p.Instance, v.p.Dir)
}

// verify reads the set, until a run is opened, the worker stops or ctx ends.
func (v *Verifier) verify(ctx context.Context, id string) (*restore.Report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(v.base, func() { cancel(context.Cause(v.base)) })()
	go v.giveWay(ctx, cancel)
	s, err := restore.Open(ctx, id, v.p.Dir)
	var report *restore.Report
	if err == nil {
		report, err = v.p.Verify(ctx, s)
	}
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	if err != nil {
		return nil, err
	}
	before := len(report.Notes)
	s.Prove(report, v.p.Now())
	for _, n := range report.Notes[before:] {
		v.p.Log.WithField("set", id).Warn(n)
	}
	return report, nil
}

// giveWay ends the verification when a run is opened.
func (v *Verifier) giveWay(ctx context.Context, cancel context.CancelCauseFunc) {
	t := time.NewTicker(v.p.Look)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if id, err := v.openRun(ctx); err == nil && id != "" {
			cancel(fmt.Errorf("%w: run %s", errRun, id))
			return
		}
	}
}

// note writes the result down, and logs what ends the tick.
func (v *Verifier) note(ctx context.Context, tick task.Tick, t schedule.Tick) error {
	t.At = tick.At
	noted, err := v.p.Store.Note(ctx, tick.Plan, t)
	if err != nil || !noted || !t.Result.Final() {
		return err
	}
	log := v.p.Log.WithFields(logrus.Fields{"plan": tick.Plan, "tick": tick.At.Format(time.RFC3339), "result": t.Result})
	if t.Set != nil {
		log = log.WithField("set", *t.Set)
	}
	if t.Reason != nil {
		log = log.WithField("reason", *t.Reason)
	}
	if t.Result == schedule.Good {
		log.Info("the verification has ended")
	} else {
		log.Error("the verification has ended")
	}
	return nil
}

func reason(format string, args ...any) *string {
	t := fmt.Sprintf(format, args...)
	return &t
}

// text makes an error fit for a record: one line, no secret, no end.
func (v *Verifier) text(err error) *string {
	s := err.Error()
	if v.p.Mask != nil {
		s = v.p.Mask(s)
	}
	s = exit.OneLine(s, 1000)
	return &s
}
