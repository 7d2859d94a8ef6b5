package dashboard

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
)

const (
	recentRuns   = 25 // runs of an instance that are read
	fewSets      = 6  // on the overview; the instance's page shows all
	fewFailures  = 3
	fewInstances = 3 // up to here the overview shows everything of each
	// staleAfter is when the list of a node is called old; workers publish each minute.
	staleAfter = 10 * time.Minute
)

// notice is something that needs attention.
type notice struct {
	Grave bool
	Text  string
	URL   string // where more is said, or ""
}

// instanceView is what the pages show of one instance.
type instanceView struct {
	Name       string
	URL        string
	Workers    []run.Worker
	Now        time.Time
	Open       *runView // the open run
	Last       *runView // the last one, if none is open
	Runs       []runView
	Failures   []runView // within the runs, newest first
	Nodes      []run.Published
	Sets       []setView // newest first
	Newest     *setView  // the newest good one
	Plans      *Plans    // nil: nothing is known of plans
	Notices    []notice
	Start      *form // nil: no button
	Full       bool  // everything, not just the newest
	Brief      bool  // only what a line of a table needs
	Unreadable string
}

// FewSets are those that the overview shows.
func (v instanceView) FewSets() []setView {
	if v.Full {
		return v.Sets
	}
	return v.Sets[:min(len(v.Sets), fewSets)]
}

// FewFailures are those that the overview shows.
func (v instanceView) FewFailures() []runView {
	if v.Full {
		return v.Failures
	}
	return v.Failures[:min(len(v.Failures), fewFailures)]
}

// Class is the instance's condition: bad, attention or good.
func (v instanceView) Class() string {
	class := "good"
	for _, n := range v.Notices {
		if n.Grave {
			return "bad"
		}
		class = "attention"
	}
	return class
}

// Word is Class in words.
func (v instanceView) Word() string {
	return map[string]string{"good": "all good", "attention": "needs attention", "bad": "in trouble"}[v.Class()]
}

// setView is a set as the pages show it.
type setView struct {
	set.Summary
	URL, Age, SizeText      string
	Node                    string
	Published               time.Time
	Proven, Damaged, Absent bool   // as of the last proof; files missing
	Broken                  string // why the chain below an incremental set does not hold, or ""
	ProofText               string
	ParentURL               string
}

// Good tells whether nothing bad is known of the set and those that it needs.
func (s setView) Good() bool { return !s.Damaged && !s.Absent && s.Broken == "" }

// look reads everything of one instance. What cannot be read is said in the view: one
// damaged record must not blank the page.
func (s *Service) look(ctx context.Context, name string, brief bool) instanceView {
	v := instanceView{Name: name, URL: "/instances/" + name, Now: s.o.Now(), Brief: brief}
	if err := s.fill(ctx, &v); err != nil {
		v.Unreadable = s.o.Explain(err).Error()
		v.Notices = append(v.Notices, notice{Grave: true, Text: fmt.Sprintf("Instance %s cannot be read: %s", name, v.Unreadable)})
		return v
	}
	v.Notices = append(v.Notices, s.notices(v)...)
	return v
}

func (s *Service) fill(ctx context.Context, v *instanceView) error {
	var err error
	if v.Now, err = s.o.Store.Time(ctx); err != nil {
		return err
	}
	if v.Workers, err = s.o.Store.Workers(ctx, v.Name); err != nil {
		return err
	}
	sort.Slice(v.Workers, func(i, j int) bool { return v.Workers[i].ID < v.Workers[j].ID })
	if v.Nodes, err = s.o.Store.Published(ctx, v.Name); err != nil {
		v.Notices = append(v.Notices, notice{Grave: true, Text: fmt.Sprintf("The sets of instance %s cannot be read: %s", v.Name, s.o.Explain(err))})
	}
	sort.Slice(v.Nodes, func(i, j int) bool { return v.Nodes[i].Node < v.Nodes[j].Node })
	v.Sets = setViews(v.Name, v.Nodes, v.Now)
	for i := range v.Sets {
		if v.Sets[i].Good() {
			v.Newest = &v.Sets[i]
			break
		}
	}
	if err := s.fillRuns(ctx, v); err != nil {
		return err
	}
	if s.o.Plans != nil {
		p, err := s.o.Plans(ctx, v.Name)
		if err != nil {
			return err
		}
		v.Plans = &p
	}
	return nil
}

func (s *Service) fillRuns(ctx context.Context, v *instanceView) error {
	var ids []string
	if !v.Brief {
		var err error
		if ids, err = s.o.Store.Recent(ctx, v.Name, recentRuns); err != nil {
			return err
		}
	}
	for _, id := range ids {
		r, err := s.o.Store.Get(ctx, id)
		if err != nil {
			continue // no longer kept, or damaged: it has a page that says so
		}
		v.Runs = append(v.Runs, runViewOf(r, v.Now))
	}
	if current, err := s.o.Store.Current(ctx, v.Name); err == nil {
		c := runViewOf(current, v.Now)
		if current.State.Over() {
			v.Last = &c
		} else {
			v.Open = &c
		}
	}
	for _, r := range v.Runs {
		if r.State == run.Failed {
			v.Failures = append(v.Failures, r)
		}
	}
	return nil
}

// setViews joins what the nodes published, newest set first.
func setViews(instance string, nodes []run.Published, now time.Time) []setView {
	ids := map[string]bool{}
	for _, n := range nodes {
		for _, s := range n.Sets {
			ids[s.Set] = true
		}
	}
	out := []setView{}
	for id := range ids {
		n, s, _ := standing.FindSet(nodes, id)
		out = append(out, setViewOf(instance, n, s, now))
	}
	checkChains(out)
	slices.SortFunc(out, func(a, b setView) int { return strings.Compare(b.Set, a.Set) })
	return out
}

// checkChains says of each incremental set what is wrong with those that it needs.
func checkChains(sets []setView) {
	byID := map[string]setView{}
	for _, s := range sets {
		byID[s.Set] = s
	}
	for i := range sets {
		seen := map[string]bool{}
		for at := sets[i]; at.Parent != nil && !seen[at.Set] && sets[i].Broken == ""; {
			seen[at.Set] = true
			parent, there := byID[*at.Parent]
			switch {
			case !there:
				sets[i].Broken = "needs " + *at.Parent + ", which is not there"
			case parent.Absent || parent.Damaged:
				sets[i].Broken = "needs " + *at.Parent + ", which is " + parent.ProofText
			}
			at = parent
		}
	}
}

func setViewOf(instance string, n run.Published, s set.Summary, now time.Time) setView {
	v := setView{Summary: s, URL: "/sets/" + instance + "/" + s.Set, Node: n.Node, Published: n.At, Age: standing.Span(now.Sub(s.Created)),
		SizeText: "unknown", Absent: len(s.Missing) > 0, ProofText: "not proven yet"}
	if s.Size != nil {
		v.SizeText = exit.Size(*s.Size)
	}
	if s.Parent != nil {
		v.ParentURL = "/sets/" + instance + "/" + *s.Parent
	}
	if p := s.Proof; p != nil {
		v.Proven, v.Damaged = p.Good, !p.Good
		if p.Good {
			v.ProofText = p.Kind + " " + ago(now, p.At)
		} else {
			v.ProofText = fmt.Sprintf("damaged (%s %s)", p.Kind, ago(now, p.At))
		}
	}
	if v.Absent {
		v.ProofText = "files missing"
	}
	return v
}

// notices are what an administrator should do something about.
func (s *Service) notices(v instanceView) []notice {
	var out []notice
	grave := func(url, format string, args ...any) {
		out = append(out, notice{Grave: true, Text: fmt.Sprintf(format, args...), URL: url})
	}
	mild := func(url, format string, args ...any) {
		out = append(out, notice{Text: fmt.Sprintf(format, args...), URL: url})
	}
	if len(v.Workers) == 0 {
		grave("", "No live worker serves instance %s: backups wait until one starts. Start one with “worker run”.", v.Name)
	}
	if v.Plans != nil && len(v.Plans.Plans) > 0 && v.Plans.Schedulers == 0 {
		grave("", "No live scheduler serves instance %s: its plans do not start anything. Start one with “producer schedule run”.", v.Name)
	}
	if v.Plans != nil && v.Plans.Refused {
		// Not why: the reason may quote the file, and so a secret that is new in it.
		grave("", "The configuration of instance %s cannot be used any more: what runs goes on as before, and nothing would start again. “producer schedule list” says what is wrong.", v.Name)
	}
	switch {
	case v.Newest != nil && v.Now.Sub(v.Newest.Created) > s.o.MaxAge:
		grave(v.Newest.URL, "The newest good set of instance %s is %s old, more than %s.", v.Name, v.Newest.Age, standing.Span(s.o.MaxAge))
	case v.Newest == nil && len(v.Sets) > 0:
		grave("", "Instance %s has no good set.", v.Name)
	case v.Newest == nil && len(v.Nodes) > 0:
		mild("", "Instance %s has no set yet.", v.Name)
	}
	out = append(out, setNotices(v.Sets)...)
	if v.Last != nil && v.Last.State == run.Failed {
		grave(v.Last.URL, "The last run of instance %s failed: %s", v.Name, v.Last.Reason())
	}
	for _, n := range v.Nodes {
		for _, p := range n.Problems {
			mild("", "Node %s: %s", n.Node, p)
		}
		if age := v.Now.Sub(n.At); age > staleAfter && len(v.Workers) > 0 {
			mild("", "Node %s has not told of its sets for %s: no worker of it lives.", n.Node, standing.Span(age))
		}
	}
	return out
}

// Unlisted is how many findings of the last proof are not listed.
func (s setView) Unlisted() int {
	if s.Proof == nil {
		return 0
	}
	return s.Proof.Findings() - len(s.Proof.Damage)
}

// Doubt says what an earlier proof found, where the last one is good; or "".
func (s setView) Doubt() string {
	if s.DoubtedBy == nil {
		return ""
	}
	return standing.Doubt(*s.DoubtedBy)
}

// setNotices name the sets that cannot be relied on, not all where there are many.
func setNotices(sets []setView) []notice {
	var out []notice
	for _, x := range sets {
		n := notice{Grave: true, URL: x.URL}
		switch {
		case x.Absent:
			n.Text = fmt.Sprintf("Set %s: files are missing or of another size.", x.Set)
		case x.Damaged:
			n.Text = fmt.Sprintf("Set %s is damaged, as %s found: %s.", x.Set, x.Proof.Kind, x.Proof.First())
		case x.Broken != "":
			n.Text = fmt.Sprintf("Set %s cannot be restored: it %s.", x.Set, x.Broken)
		case x.DoubtedBy != nil:
			n.Grave, n.Text = false, fmt.Sprintf("Set %s: %s.", x.Set, standing.Doubt(*x.DoubtedBy))
		default:
			continue
		}
		out = append(out, n)
	}
	if more := len(out) - fewSets; more > 0 {
		out = append(out[:fewSets], notice{Grave: true, Text: fmt.Sprintf("%d more sets are in such a state.", more)})
	}
	return out
}
