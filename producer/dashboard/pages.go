package dashboard

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"html/template"
	"net/http"
	"regexp"
	"slices"
	"time"

	"catalog-backup/producer/standing"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"
)

//go:embed templates
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

// lookLimit is how long reading Redis for one page may take.
const lookLimit = 8 * time.Second

// How often a page with script looks again, in milliseconds.
const (
	pollRunning = 2000
	pollIdle    = 5000
)

// pages are the templates by the name of their page.
type pages map[string]*template.Template

func parsePages() (pages, error) {
	out := pages{}
	for _, name := range []string{"overview", "instance", "run", "set", "confirm", "message"} {
		t, err := template.New("layout.html").Funcs(template.FuncMap{"clock": clock, "stamp": stampOf, "ago": ago, "size": exit.Size,
			"span": standing.Span, "sub": func(a, b int) int { return a - b }}).
			ParseFS(templateFiles, "templates/layout.html", "templates/parts.html", "templates/"+name+".html")
		if err != nil {
			return nil, err
		}
		out[name] = t
	}
	return out, nil
}

// page is what every template gets.
type page struct {
	Title    string
	Nav      string // which entry of the navigation this is
	Now      time.Time
	User     string
	Open     bool
	Instance string // the configured one
	Version  string
	Away     bool   // Redis does not answer
	Poll     int    // 0: the page does not look again by itself
	Announce string // what a screen reader is told when it changes
	Notices  []notice
	Body     any
}

func (s *Service) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", s.reached(s.overview))
	mux.HandleFunc("GET /instances/{instance}", s.ofInstance(s.instance))
	mux.HandleFunc("GET /runs/{run}", s.ofRun(s.run))
	mux.HandleFunc("GET /sets/{instance}/{set}", s.ofInstance(s.set))
	mux.HandleFunc("GET /runs/{run}/cancel", s.ofRun(s.confirmCancel))
	mux.HandleFunc("POST /runs/{run}/cancel", s.allowed(cancelRun, s.ofRun(s.cancel)))
	mux.HandleFunc("POST /instances/{instance}/backups", s.allowed(startABackup, s.ofInstance(s.startBackup)))
	files := http.FileServerFS(staticFiles)
	mux.HandleFunc("GET /static/{file}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "private, max-age=300")
		files.ServeHTTP(w, r)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.say(w, r, http.StatusNotFound, "Not found", "There is no such page.")
	})
}

// now is the time by Redis's clock, by which records are written; this host's where
// Redis does not tell.
func (s *Service) now(ctx context.Context) time.Time {
	at, err := s.o.Store.Time(ctx)
	if err != nil {
		return s.o.Now()
	}
	return at
}

// show writes a page. It is made whole before anything is sent, so that an error
// in the middle does not leave half a page.
func (s *Service) show(w http.ResponseWriter, r *http.Request, status int, name string, p page) {
	p.User, p.Open, p.Version, p.Instance = userOf(r), s.o.Open, s.o.Version, s.o.Instance
	p.Now = s.o.Now()
	var out bytes.Buffer
	if err := s.pages[name].Execute(&out, p); err != nil {
		s.o.Log.WithError(err).Error("dashboard: a page cannot be made")
		http.Error(w, "this page cannot be made: "+printable(err.Error()), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(plain(out.Bytes()))
}

// message is the body of a page that says one thing.
type message struct{ Heading, Text, Detail, URL, Link string }

func (s *Service) say(w http.ResponseWriter, r *http.Request, status int, heading, text string) {
	s.show(w, r, status, "message", page{Title: heading, Body: message{Heading: heading, Text: text}})
}

// away says that Redis cannot be used. The page looks again by itself.
func (s *Service) away(w http.ResponseWriter, r *http.Request, err error) {
	w.Header().Set("Retry-After", "5")
	s.show(w, r, http.StatusServiceUnavailable, "message", page{Title: "Redis is away", Away: true, Poll: pollRunning, Body: message{Heading: "Redis is away",
		Text: "Nothing is known of runs and sets until it answers again. What runs goes on.", Detail: s.o.Explain(err).Error()}})
}

// reached bounds the time for a page, and shows it only after Redis has answered.
func (s *Service) reached(show http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, done := context.WithTimeout(r.Context(), lookLimit)
		defer done()
		if err := s.o.Ping(ctx); err != nil {
			s.away(w, r, err)
			return
		}
		show(w, r.WithContext(ctx))
	}
}

// ofInstance finds the instance that the address names; without one the page says so.
func (s *Service) ofInstance(show func(http.ResponseWriter, *http.Request, string)) http.HandlerFunc {
	return s.reached(func(w http.ResponseWriter, r *http.Request) {
		names, err := s.instances(r.Context())
		if err != nil {
			s.away(w, r, err)
			return
		}
		name := r.PathValue("instance")
		if !slices.Contains(names, name) {
			s.say(w, r, http.StatusNotFound, "No such instance", "No instance of this name has been seen in this Redis.")
			return
		}
		show(w, r, name)
	})
}

// ofRun reads the run that the address names; without one the page says what is wrong.
func (s *Service) ofRun(show func(http.ResponseWriter, *http.Request, run.Record)) http.HandlerFunc {
	return s.reached(func(w http.ResponseWriter, r *http.Request) {
		rec, err := s.o.Store.Get(r.Context(), r.PathValue("run"))
		switch {
		case errors.Is(err, run.ErrNotFound):
			s.say(w, r, http.StatusNotFound, "No such run", "There is no record of this run. Records of ended runs are kept for queue.keep_runs; the sets of good runs stay.")
		case err != nil:
			s.say(w, r, http.StatusInternalServerError, "This run cannot be read", s.o.Explain(err).Error())
		default:
			show(w, r, rec)
		}
	})
}

var instanceName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// instances are all that Redis has seen, and the configured one.
func (s *Service) instances(ctx context.Context) ([]string, error) {
	names, err := s.o.Store.Instances(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(names, s.o.Instance) {
		names = append(names, s.o.Instance)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !instanceName.MatchString(n) })
	slices.Sort(names)
	return names, nil
}

// overviewBody is what the first page shows.
type overviewBody struct {
	Instances []instanceView
	Detailed  bool // all of each instance, not a line
	HasPlans  bool
}

func (s *Service) overview(w http.ResponseWriter, r *http.Request) {
	names, err := s.instances(r.Context())
	if err != nil {
		s.away(w, r, err)
		return
	}
	body := overviewBody{Detailed: len(names) <= fewInstances, HasPlans: s.o.Plans != nil}
	p := page{Title: "Overview", Nav: "overview", Poll: pollIdle}
	for _, name := range names {
		v := s.look(r.Context(), name, !body.Detailed)
		s.offerStart(r, &v)
		if v.Open != nil {
			p.Poll = pollRunning
			p.Announce += v.Name + ": " + v.Open.Where + ". "
		}
		p.Notices = append(p.Notices, v.Notices...)
		body.Instances = append(body.Instances, v)
	}
	p.Body = body
	s.show(w, r, http.StatusOK, "overview", p)
}

func (s *Service) instance(w http.ResponseWriter, r *http.Request, name string) {
	v := s.look(r.Context(), name, false)
	v.Full = true
	s.offerStart(r, &v)
	p := page{Title: name, Poll: pollIdle, Notices: v.Notices, Body: v}
	if v.Open != nil {
		p.Poll, p.Announce = pollRunning, v.Open.Where
	}
	s.show(w, r, http.StatusOK, "instance", p)
}

// runBody is what a run's page shows.
type runBody struct {
	Run    runView
	SetURL string
}

func (s *Service) run(w http.ResponseWriter, r *http.Request, rec run.Record) {
	v := runViewOf(rec, s.now(r.Context()))
	s.offerCancel(r, &v)
	p := page{Title: "Run " + rec.ID, Announce: v.Words}
	if !rec.State.Over() {
		p.Poll, p.Announce = pollRunning, v.Words+", "+v.Where
	}
	body := runBody{Run: v}
	if rec.State == run.Succeeded && rec.Set != "" {
		body.SetURL = "/sets/" + rec.Instance + "/" + rec.Set
	}
	p.Body = body
	s.show(w, r, http.StatusOK, "run", p)
}

// setBody is what a set's page shows.
type setBody struct {
	Instance string
	Set      setView
	Children []setView // incrementals on it
	Chain    []string  // its parents, nearest first
}

func (s *Service) set(w http.ResponseWriter, r *http.Request, name string) {
	nodes, err := s.o.Store.Published(r.Context(), name)
	if err != nil {
		s.say(w, r, http.StatusInternalServerError, "The sets cannot be read", s.o.Explain(err).Error())
		return
	}
	now := s.now(r.Context())
	node, summary, ok := standing.FindSet(nodes, r.PathValue("set"))
	if !ok {
		s.say(w, r, http.StatusNotFound, "No such set", "No worker has published a set of this name. The instance's page lists those there are.")
		return
	}
	body := setBody{Instance: name, Set: setViewOf(name, node, summary, now)} // of the best node
	for _, other := range setViews(name, nodes, now) {
		if other.Set == summary.Set {
			body.Set.Broken = other.Broken
		}
		if other.Parent != nil && *other.Parent == summary.Set {
			body.Children = append(body.Children, other)
		}
	}
	body.Chain = chain(nodes, summary)
	s.show(w, r, http.StatusOK, "set", page{Title: "Set " + summary.Set, Poll: pollIdle, Body: body})
}

// chain lists a set's parents up to its full set. A circle, which a damaged manifest
// may make, ends it.
func chain(nodes []run.Published, s set.Summary) []string {
	var out []string
	for s.Parent != nil && !slices.Contains(out, *s.Parent) && *s.Parent != s.Set {
		out = append(out, *s.Parent)
		_, parent, ok := standing.FindSet(nodes, *s.Parent)
		if !ok {
			break
		}
		s = parent
	}
	return out
}
