package health

import (
	"context"
	"strings"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/schedule"
	"catalog-backup/shared/set"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

const namespace = "catalog_backup"

// measure is one metric, as the documentation has it too.
type measure struct {
	desc   *prometheus.Desc
	name   string
	kind   prometheus.ValueType // 0 is a histogram
	help   string
	labels []string
}

// measures are all of ours, in the order of the documentation.
var measures []measure

func define(kind prometheus.ValueType, name, help string, labels ...string) *prometheus.Desc {
	name = prometheus.BuildFQName(namespace, "", name)
	d := prometheus.NewDesc(name, help, labels, nil)
	measures = append(measures, measure{d, name, kind, help, labels})
	return d
}

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return define(prometheus.GaugeValue, name, help, labels...)
}

func counter(name, help string, labels ...string) *prometheus.Desc {
	return define(prometheus.CounterValue, name, help, labels...)
}

func histogram(name, help string, labels ...string) *prometheus.Desc {
	return define(0, name, help, labels...)
}

var (
	buildInfo  = gauge("build_info", "Always 1; the labels say what this process is.", "program", "version")
	redisUp    = gauge("redis_up", "1 if Redis answers. While it is 0, all that Redis knows is left out.")
	unreadable = gauge("unreadable_entries", "Entries in Redis that could not be read just now: damage, or another version's.")

	runsTotal  = counter("runs_total", "Runs that ended, by result: succeeded, failed or cancelled.", "instance", "result")
	lastResult = gauge("last_run_result", "1 for the result of the run that ended last, 0 for the others.", "instance", "result")
	lastEnded  = gauge("last_run_timestamp_seconds", "When the last run ended, whatever its result.", "instance")
	retries    = counter("retries_total", "Attempts after which their stage was tried again, by kind: error, interrupted or crashed.", "instance", "stage", "kind")
	took       = histogram("stage_duration_seconds", "How long attempts at a stage took, by their outcome: good, error, interrupted, crashed or cancelled.", "instance", "stage", "outcome")

	successAt  = gauge("last_success_timestamp_seconds", "When the newest good set was made.", "instance")
	successAge = gauge("last_success_age_seconds", "How old the newest good set is.", "instance")
	provenAt   = gauge("last_proven_timestamp_seconds", "When the newest set was made that a verification found good.", "instance")
	provenAge  = gauge("last_proven_age_seconds", "How old the newest set is that a verification found good.", "instance")
	sets       = gauge("sets", "Good sets on the disks of all nodes.", "instance")
	damaged    = gauge("damaged_sets", "Sets on the disks of all nodes that a verification found damaged, or of which files are missing.", "instance")
	problems   = gauge("unreadable_manifests", "Manifests, and files of proofs, on the disks of all nodes that cannot be read.", "instance")
	newestSize = gauge("newest_set_size_bytes", "Size of the newest good set: the sum of its files but the manifest.", "instance")

	active    = gauge("run_active", "1 while the instance has an open run.", "instance")
	started   = gauge("run_start_timestamp_seconds", "When the open run was asked for.", "instance")
	doneBytes = gauge("run_done_bytes", "Bytes that the open run's present stage has done.", "instance")
	allBytes  = gauge("run_expected_bytes", "Bytes that the open run's present stage has to do, where it knows.", "instance")
	workers   = gauge("live_workers", "Workers that gave a sign of life within the last 12 seconds.", "instance")
	scheduled = gauge("live_schedulers", "Schedulers that gave a sign of life within the last 20 seconds.", "instance")
	tasks     = gauge("queue_tasks", "Tasks in a queue of asynq, by state: pending, active, scheduled, retry, archived or completed.", "queue", "state")
)

var (
	results = []run.State{run.Succeeded, run.Failed, run.Cancelled}
	kinds   = []run.Outcome{run.Erred, run.Interrupted, run.Crashed}
)

// collector shows what Redis knows. It keeps no number itself, so that all
// processes show the same ones, and none from before Redis went away.
type collector struct {
	o      Options
	store  *run.Store
	rdb    *redis.Client
	look   *checked
	latest *findings // written by look, read when it has answered
}

// findings are one look at Redis.
type findings struct {
	surveys    []run.Survey
	schedulers []int // of the instances of surveys
	depths     []depth
}

func newCollector(rdb *redis.Client, store *run.Store, o Options) *collector {
	c := &collector{o: o, store: store, rdb: rdb}
	c.look = checks([]Check{{Name: "metrics", Do: c.read}}, o.Now)[0]
	return c
}

func (c *collector) read(ctx context.Context) error {
	var f findings
	var err error
	if f.surveys, err = c.store.Surveys(ctx); err != nil {
		return err
	}
	for i, s := range f.surveys {
		live, err := schedule.NewStore(c.rdb, s.Instance, c.o.Now).Schedulers(ctx)
		if err != nil && !redis.HasErrorPrefix(err, wrongType) {
			return err
		}
		if err != nil {
			f.surveys[i].Unreadable = append(s.Unreadable, err.Error())
		}
		f.schedulers = append(f.schedulers, len(live))
	}
	if f.depths, err = depths(ctx, c.rdb); err != nil {
		return err
	}
	c.look.mu.Lock()
	c.latest = &f
	c.look.mu.Unlock()
	return nil
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range measures {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	show := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	show(buildInfo, 1, c.o.Program, c.o.Version)
	if c.look.ask(context.Background()) != nil {
		show(redisUp, 0)
		return
	}
	c.look.mu.Lock()
	f := c.latest
	c.look.mu.Unlock()
	show(redisUp, 1)
	odd := 0
	for i, s := range f.surveys {
		odd += len(s.Unreadable)
		e := emit{ch, valid(s.Instance)}
		e.survey(s)
		e.gauge(scheduled, float64(f.schedulers[i]))
	}
	show(unreadable, float64(odd))
	for _, d := range f.depths {
		show(tasks, float64(d.tasks), valid(d.queue), d.state)
	}
}

// emit writes the metrics of one instance.
type emit struct {
	ch       chan<- prometheus.Metric
	instance string
}

func (e emit) value(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
	e.ch <- prometheus.MustNewConstMetric(d, kind, v, append([]string{e.instance}, labels...)...)
}

func (e emit) gauge(d *prometheus.Desc, v float64, labels ...string) {
	e.value(d, prometheus.GaugeValue, v, labels...)
}

func (e emit) survey(s run.Survey) {
	e.totals(s.Totals)
	e.gauge(workers, float64(s.Workers))
	e.openRun(s.Open)
	e.sets(s.Published, s.At)
}

// totals begin at 0 for every result and kind, so that the first of a kind is seen as an increase.
func (e emit) totals(t run.Totals) {
	for _, r := range results {
		e.value(runsTotal, prometheus.CounterValue, float64(t.Runs[r]), string(r))
		if t.Last != "" {
			e.gauge(lastResult, truth(t.Last == r), string(r))
		}
	}
	if !t.LastEnd.IsZero() {
		e.gauge(lastEnded, seconds(t.LastEnd))
	}
	counts := map[run.Retried]int64{}
	for _, stage := range append(run.Stages[:len(run.Stages):len(run.Stages)], run.Cleanup) {
		for _, k := range kinds {
			counts[run.Retried{Stage: stage, Kind: k}] = 0
		}
	}
	for r, n := range t.Retries {
		counts[r] = n
	}
	for r, n := range counts {
		e.value(retries, prometheus.CounterValue, float64(n), valid(r.Stage), valid(string(r.Kind)))
	}
	for k, d := range t.Took {
		classes := map[float64]uint64{}
		for bound, n := range d.Classes {
			classes[bound] = uint64(n)
		}
		e.ch <- prometheus.MustNewConstHistogram(took, uint64(d.Count), d.Sum.Seconds(), classes, e.instance, valid(k.Stage), valid(string(k.Outcome)))
	}
}

func (e emit) openRun(r *run.Record) {
	e.gauge(active, truth(r != nil))
	if r == nil {
		return
	}
	e.gauge(started, seconds(r.Created))
	if r.BytesDone != nil {
		e.gauge(doneBytes, float64(*r.BytesDone))
	}
	if r.BytesTotal != nil {
		e.gauge(allBytes, float64(*r.BytesTotal))
	}
}

// sets looks at what the nodes last said of their disks. A set of which files
// are missing, or that a verification found damaged, is not a good one.
func (e emit) sets(published []run.Published, now time.Time) {
	var newest, proven *set.Summary
	seen, bad, odd := map[string]bool{}, map[string]bool{}, 0
	for _, p := range published {
		odd += len(p.Problems)
		for i, s := range p.Sets {
			if len(s.Missing) > 0 || s.Proof != nil && !s.Proof.Good {
				bad[s.Set] = true
				continue
			}
			seen[s.Set] = true
			if newest == nil || s.Created.After(newest.Created) {
				newest = &p.Sets[i]
			}
			if s.Proof != nil && (proven == nil || s.Created.After(proven.Created)) {
				proven = &p.Sets[i]
			}
		}
	}
	e.gauge(sets, float64(len(seen)))
	e.gauge(damaged, float64(len(bad)))
	e.gauge(problems, float64(odd))
	if newest != nil {
		e.gauge(successAt, seconds(newest.Created))
		e.gauge(successAge, max(0, now.Sub(newest.Created).Seconds()))
		if newest.Size != nil {
			e.gauge(newestSize, float64(*newest.Size))
		}
	}
	if proven != nil {
		e.gauge(provenAt, seconds(proven.Created))
		e.gauge(provenAge, max(0, now.Sub(proven.Created).Seconds()))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// valid makes a text from Redis fit for a label.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
