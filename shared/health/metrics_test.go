package health

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"catalog-backup/shared/lab"
	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/set"
	"catalog-backup/shared/task"

	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// play moves runs of instance catalog as the pipeline does: one succeeds after an
// error, a crash and an interruption, one fails, one is cancelled, one is open.
func play(t *testing.T, server *lab.RedisServer, c *clock) *run.Store {
	t.Helper()
	rdb := server.Client()
	t.Cleanup(func() { _ = rdb.Close() })
	p := &player{t: t, c: c, Store: run.NewStore(rdb, c.Now, 90*24*time.Hour)}
	r := p.start()
	r = p.again(p.claim(r), run.Retry{Kind: run.Erred, Error: "e", Budget: 3}, 2*time.Second)
	r = p.again(p.claim(r), run.Retry{Kind: run.Interrupted, Error: "i", Budget: 3}, 3*time.Second)
	r = p.advance(p.claim(r), "postgres", 500*time.Millisecond)
	r = p.again(p.claim(r), run.Retry{Kind: run.Crashed, Error: "c", Budget: 3}, 48*time.Hour)
	r = p.advance(p.claim(r), "eventbus", time.Hour)
	r = p.advance(p.claim(r), "archive", time.Minute)
	p.advance(p.claim(r), "", 20*time.Minute)

	r = p.again(p.claim(p.start()), run.Retry{Kind: run.Erred, Error: "no space", Permanent: true}, time.Second)
	r = p.claim(r)
	require.NoError(t, p.Cleaned(ctx, r, r.Hold(), false))

	_, err := p.Cancel(ctx, p.start())
	require.NoError(t, err)

	r = p.claim(p.start())
	done, total := int64(1<<20), int64(1<<30)
	require.NoError(t, p.Progress(ctx, r.ID, r.Hold(), r.Epoch, &done, &total, nil))
	return p.Store
}

type player struct {
	*run.Store
	t   *testing.T
	c   *clock
	ids byte
}

func (p *player) start() run.Record {
	p.t.Helper()
	p.ids++
	r, err := p.Start(ctx, run.Request{ID: run.NewID(p.c.Now(), []byte{0, 0, 0, 0, p.ids}), Instance: "catalog", Requested: "full", Type: "full", FirstStage: run.Prepare, Epoch: "e"})
	require.NoError(p.t, err)
	return r
}

func (p *player) claim(r run.Record) run.Record {
	p.t.Helper()
	claim, err := p.Claim(ctx, r.ID, r.Stage, r.Generation, "host1", "token234", time.Hour)
	require.NoError(p.t, err)
	require.Equal(p.t, "ok", claim.Kind)
	return p.reload(r)
}

func (p *player) reload(r run.Record) run.Record {
	p.t.Helper()
	r, err := p.Get(ctx, r.ID)
	require.NoError(p.t, err)
	return r
}

func (p *player) again(r run.Record, q run.Retry, took time.Duration) run.Record {
	p.t.Helper()
	p.c.pass(took)
	_, err := p.Again(ctx, r, r.Stage, r.Generation, q)
	require.NoError(p.t, err)
	return p.reload(r)
}

func (p *player) advance(r run.Record, next string, took time.Duration) run.Record {
	p.t.Helper()
	p.c.pass(took)
	_, err := p.Advance(ctx, r, r.Stage, r.Hold(), next, "x")
	require.NoError(p.t, err)
	return p.reload(r)
}

func publish(t *testing.T, store *run.Store, now time.Time) {
	t.Helper()
	summary := func(id string, age time.Duration, size int64, proof *set.Proof, missing ...string) set.Summary {
		return set.Summary{Set: id, Created: now.Add(-age), Size: &size, Proof: proof, Missing: missing}
	}
	good, bad := &set.Proof{Kind: "verify", Good: true}, &set.Proof{Kind: "verify"}
	require.NoError(t, store.Publish(ctx, "catalog", run.Published{Node: "host1", Sets: []set.Summary{
		summary("a", 50*time.Hour, 100, good), summary("b", 26*time.Hour, 200, nil), summary("damaged", 2*time.Hour, 300, bad), summary("torn", time.Hour, 400, nil, "x.tar.gz")}}))
	require.NoError(t, store.Publish(ctx, "catalog", run.Published{Node: "host2", Sets: []set.Summary{summary("c", 25*time.Hour, 250, nil), summary("old", 90*time.Hour, 50, good)}, Problems: []string{"x.json: damaged"}}))
}

func TestMetrics(t *testing.T) {
	server, c := lab.Redis(t), newClock()
	store := play(t, server, c)
	publish(t, store, c.Now())
	rdb := server.Client()
	defer func() { _ = rdb.Close() }()
	for _, id := range []string{"w1", "w2"} {
		require.NoError(t, store.SignIn(ctx, "catalog", run.Worker{ID: id, Node: "host1"}))
	}
	require.NoError(t, store.SignIn(ctx, "fresh", run.Worker{ID: "w3", Node: "host1"}))
	require.NoError(t, schedule.NewStore(rdb, "catalog", c.Now).SignIn(ctx, schedule.Scheduler{ID: "s1"}, nil))
	want, err := textOf(c.Now())
	require.NoError(t, err)
	first, second := newHealth(t, server, Options{Now: c.Now}), newHealth(t, server, Options{Now: c.Now})
	for _, h := range []*Health{first, second} { // all processes show the same
		require.NoError(t, testutil.GatherAndCompare(h.registry, strings.NewReader(want), ours()...))
	}
	problems, err := testutil.GatherAndLint(first.registry)
	require.NoError(t, err)
	require.Empty(t, problems)
}

// ours are the names of all our metrics.
func ours() []string {
	var out []string
	for _, m := range measures {
		out = append(out, m.name)
	}
	return out
}

// textOf is what play and publish must come to.
func textOf(now time.Time) (string, error) {
	lines := map[string][]string{}
	add := func(name, line string) { lines[name] = append(lines[name], "catalog_backup_"+name+line) }
	add("build_info", `{program="worker",version="1.2.3"} 1`)
	add("redis_up", " 1")
	add("unreadable_entries", " 0")
	for instance, x := range map[string][3]int{"catalog": {1, 1, 1}, "fresh": {}} {
		for i, result := range []string{"succeeded", "failed", "cancelled"} {
			add("runs_total", fmt.Sprintf(`{instance=%q,result=%q} %d`, instance, result, x[i]))
		}
		for _, stage := range []string{"prepare", "postgres", "eventbus", "archive", "cleanup"} {
			for _, kind := range []string{"error", "interrupted", "crashed"} {
				n := map[string]int{"catalogprepareerror": 1, "catalogprepareinterrupted": 1, "catalogpostgrescrashed": 1}[instance+stage+kind]
				add("retries_total", fmt.Sprintf(`{instance=%q,kind=%q,stage=%q} %d`, instance, kind, stage, n))
			}
		}
	}
	add("last_run_result", `{instance="catalog",result="succeeded"} 0`)
	add("last_run_result", `{instance="catalog",result="failed"} 0`)
	add("last_run_result", `{instance="catalog",result="cancelled"} 1`)
	add("run_active", `{instance="catalog"} 1`)
	add("run_active", `{instance="fresh"} 0`)
	add("run_done_bytes", `{instance="catalog"} 1048576`)
	add("run_expected_bytes", `{instance="catalog"} 1073741824`)
	add("live_workers", `{instance="catalog"} 2`)
	add("live_workers", `{instance="fresh"} 1`)
	add("live_schedulers", `{instance="catalog"} 1`)
	add("live_schedulers", `{instance="fresh"} 0`)
	add("sets", `{instance="catalog"} 4`)
	add("sets", `{instance="fresh"} 0`)
	add("damaged_sets", `{instance="catalog"} 2`)
	add("damaged_sets", `{instance="fresh"} 0`)
	add("unreadable_manifests", `{instance="catalog"} 1`)
	add("unreadable_manifests", `{instance="fresh"} 0`)
	add("newest_set_size_bytes", `{instance="catalog"} 250`)
	add("last_success_age_seconds", `{instance="catalog"} 90000`)
	add("last_proven_age_seconds", `{instance="catalog"} 180000`)
	for _, name := range []string{"run_start_timestamp_seconds", "last_run_timestamp_seconds"} {
		add(name, `{instance="catalog"} `+fmt.Sprintf("%g", float64(now.UnixMilli())/1000))
	}
	add("last_success_timestamp_seconds", `{instance="catalog"} `+fmt.Sprintf("%g", float64(now.Add(-25*time.Hour).UnixMilli())/1000))
	add("last_proven_timestamp_seconds", `{instance="catalog"} `+fmt.Sprintf("%g", float64(now.Add(-50*time.Hour).UnixMilli())/1000))
	for _, d := range []struct {
		stage, outcome string
		sum, bound     float64
	}{{"prepare", "error", 3, 0}, {"prepare", "interrupted", 3, 5}, {"prepare", "good", 0.5, 1}, {"postgres", "crashed", 172800, 1e9}, {"postgres", "good", 3600, 3600},
		{"eventbus", "good", 60, 60}, {"archive", "good", 1200, 1800}, {"cleanup", "good", 0, 1}} {
		count := 1
		if d.outcome == "error" {
			count = 2 // one took a second, one two
		}
		labels := fmt.Sprintf(`instance="catalog",outcome=%q,stage=%q`, d.outcome, d.stage)
		for _, b := range run.TookBounds {
			n := 0
			switch {
			case d.outcome == "error" && b == 1:
				n = 1
			case d.outcome == "error":
				n = 2
			case b >= d.bound:
				n = 1
			}
			add("stage_duration_seconds", fmt.Sprintf(`_bucket{%s,le="%g"} %d`, labels, b, n))
		}
		add("stage_duration_seconds", fmt.Sprintf(`_bucket{%s,le="+Inf"} %d`, labels, count))
		add("stage_duration_seconds", fmt.Sprintf(`_sum{%s} %g`, labels, d.sum))
		add("stage_duration_seconds", fmt.Sprintf(`_count{%s} %d`, labels, count))
	}
	var text strings.Builder
	for _, m := range measures {
		name := strings.TrimPrefix(m.name, "catalog_backup_")
		if len(lines[name]) == 0 {
			if name == "queue_tasks" {
				continue
			}
			return "", errors.New("nothing is expected of " + name)
		}
		fmt.Fprintf(&text, "# HELP catalog_backup_%s %s\n# TYPE catalog_backup_%s %s\n%s\n", name, m.help, name, kindOf(m), strings.Join(lines[name], "\n"))
	}
	return text.String(), nil
}

// The depths are the ones that asynq's own inspector tells, in every state.
func TestQueuesAreReadAsAsynqReadsThem(t *testing.T) {
	server := lab.Redis(t)
	rdb := server.Client()
	defer func() { _ = rdb.Close() }()
	client := asynq.NewClientFromRedisClient(rdb)
	in := asynq.NewInspectorFromRedisClient(rdb)
	release := make(chan struct{})
	srv := asynq.NewServerFromRedisClient(rdb, asynq.Config{Concurrency: 8, Queues: map[string]int{"catalog.host1": 1}, LogLevel: asynq.FatalLevel,
		TaskCheckInterval: 20 * time.Millisecond, RetryDelayFunc: func(int, error, *asynq.Task) time.Duration { return time.Hour }})
	handler := asynq.HandlerFunc(func(_ context.Context, tk *asynq.Task) error {
		switch tk.Type() {
		case "active":
			<-release
		case "retry":
			return errors.New("again")
		case "archived":
			return asynq.SkipRetry
		}
		return nil
	})
	put := func(n int, kind, queue string, opts ...asynq.Option) {
		for range n {
			_, err := client.Enqueue(asynq.NewTask(kind, nil), append(opts, asynq.Queue(queue))...)
			require.NoError(t, err)
		}
	}
	put(2, "active", "catalog.host1")
	put(3, "retry", "catalog.host1")
	put(1, "archived", "catalog.host1")
	put(2, "completed", "catalog.host1", asynq.Retention(time.Hour))
	put(4, "scheduled", "catalog.host1", asynq.ProcessIn(time.Hour))
	require.NoError(t, srv.Start(handler))
	defer srv.Shutdown()
	defer close(release)
	require.NoError(t, task.NewEnqueuer(rdb, time.Now).Enqueue(ctx, "e", "", task.Payload{Run: "r", Instance: "catalog", Stage: "prepare", Generation: 1}, nil))
	read := func() map[string]int64 {
		list, err := depths(ctx, rdb)
		require.NoError(t, err)
		out := map[string]int64{}
		for _, d := range list {
			out[d.queue+" "+d.state] = d.tasks
		}
		return out
	}
	want := map[string]int64{"catalog pending": 1, "catalog active": 0, "catalog scheduled": 0, "catalog retry": 0, "catalog archived": 0, "catalog completed": 0,
		"catalog.host1 pending": 0, "catalog.host1 active": 2, "catalog.host1 scheduled": 4, "catalog.host1 retry": 3, "catalog.host1 archived": 1, "catalog.host1 completed": 2}
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Equal(c, want, read()) }, patience, 20*time.Millisecond)
	for _, q := range []string{"catalog", "catalog.host1"} {
		i, err := in.GetQueueInfo(q)
		require.NoError(t, err)
		require.Equal(t, map[string]int64{q + " pending": int64(i.Pending), q + " active": int64(i.Active), q + " scheduled": int64(i.Scheduled),
			q + " retry": int64(i.Retry), q + " archived": int64(i.Archived), q + " completed": int64(i.Completed)}, of(read(), q))
	}
	h := newHealth(t, server, Options{})
	_, text := get(t, h, "/metrics")
	require.Contains(t, text, `catalog_backup_queue_tasks{queue="catalog.host1",state="scheduled"} 4`)
}

func of(all map[string]int64, queue string) map[string]int64 {
	out := map[string]int64{}
	for k, n := range all {
		if strings.HasPrefix(k, queue+" ") {
			out[k] = n
		}
	}
	return out
}

// What an odd hand left in Redis is counted, and takes nothing else away.
func TestMetricsOfDamage(t *testing.T) {
	server, c := lab.Redis(t), newClock()
	play(t, server, c)
	rdb := server.Client()
	defer func() { _ = rdb.Close() }()
	require.NoError(t, rdb.HSet(ctx, "catalog-backup:catalog:sets", "host\xff", "{").Err())
	require.NoError(t, rdb.SAdd(ctx, "catalog-backup:instances", "odd\xff\"\n").Err())
	require.NoError(t, rdb.HSet(ctx, "catalog-backup:catalog:totals", "retries:x\xff:error", "3", "runs:succeeded", "many").Err())
	require.NoError(t, rdb.Set(ctx, "catalog-backup:catalog:schedule:schedulers", "odd", 0).Err())
	require.NoError(t, rdb.SAdd(ctx, allQueuesKey, "catalog").Err())
	require.NoError(t, rdb.Set(ctx, "asynq:{catalog}:pending", "odd", 0).Err())
	h := newHealth(t, server, Options{Now: c.Now})
	code, text := get(t, h, "/metrics")
	require.Contains(t, text, "catalog_backup_redis_up 1\n")
	require.Equal(t, 200, code)
	require.Contains(t, text, "catalog_backup_unreadable_entries 2\n")
	require.Contains(t, text, `catalog_backup_runs_total{instance="catalog",result="failed"} 1`)
	require.Contains(t, text, `catalog_backup_retries_total{instance="catalog",kind="error",stage="x`+"\uFFFD"+`"} 3`)
}
