package dashboard

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/hibiken/asynq"
	"github.com/hibiken/asynqmon"
)

// queuesRoot is where asynqmon lives. Its page takes everything below.
const queuesRoot = "/asynqmon"

// queues is asynqmon, for looking only: its buttons would go past our run record.
type queues struct{ monitor *asynqmon.HTTPHandler }

func newQueues(redis asynq.RedisConnOpt) *queues {
	return &queues{asynqmon.New(asynqmon.Options{RootPath: queuesRoot, RedisConnOpt: redis, ReadOnly: true,
		PayloadFormatter: asynqmon.PayloadFormatterFunc(payloadText), ResultFormatter: asynqmon.ResultFormatterFunc(payloadText)})}
}

func (q *queues) close() error { return q.monitor.Close() }

func (q *queues) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	below := strings.TrimPrefix(path.Clean(r.URL.Path), queuesRoot)
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "the queues are shown here and not changed; use `producer cancel`, or the buttons of the dashboard where they are allowed", http.StatusMethodNotAllowed)
	case below == "/api/metrics": // asynqmon would ask a Prometheus that nobody named, and answer 500
		http.Error(w, "no Prometheus is asked here; the metrics are at /metrics", http.StatusNotFound)
	case strings.HasPrefix(below, "/api/"):
		q.monitor.ServeHTTP(w, r)
	case strings.HasPrefix(below, "/static/") || strings.Count(below, "/") == 1 && path.Ext(below) != "": // names of queues have dots too
		if strings.HasSuffix(below, ".map") {
			http.NotFound(w, r)
			return
		}
		serveAsset(q.monitor, w, r, below)
	default:
		q.page(w, r)
	}
}

// serveAsset corrects the types that asynqmon guesses: with nosniff a browser takes
// them at their word.
func serveAsset(next http.Handler, w http.ResponseWriter, r *http.Request, name string) {
	page := &recorder{header: http.Header{}, status: http.StatusOK}
	next.ServeHTTP(page, r)
	kind := page.header.Get("Content-Type")
	switch path.Ext(name) {
	case ".js":
		kind = "text/javascript; charset=utf-8"
	case ".svg":
		kind = "image/svg+xml"
	case ".json":
		kind = "application/json"
	}
	if strings.Contains(string(page.body.Bytes()[:min(200, page.body.Len())]), "<!doctype html>") {
		http.NotFound(w, r) // asynqmon answers its page for a file that is not there
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "private, max-age=3600")
	w.WriteHeader(page.status)
	_, _ = w.Write(page.body.Bytes())
}

// recorder keeps an answer to change it.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }

var (
	// foreignLinks are what asynqmon's page would fetch from others (fonts), or without
	// our log-in (the manifest).
	foreignLinks = regexp.MustCompile(`<link rel="(?:stylesheet" href="https?://|manifest")[^>]*>`)
	inlineScript = regexp.MustCompile(`(?s)<script>(.*?)</script>`)
)

// page is asynqmon's one HTML page, without what it fetches from elsewhere. Its inline
// scripts are allowed by their hash, not at large.
func (q *queues) page(w http.ResponseWriter, r *http.Request) {
	page := &recorder{header: http.Header{}, status: http.StatusOK}
	q.monitor.ServeHTTP(page, r)
	body := foreignLinks.ReplaceAll(page.body.Bytes(), nil)
	body = bytes.Replace(body, []byte(`<div id="root">`), []byte(wayBack+`<div id="root">`), 1)
	scripts := []string{"'self'"}
	for _, m := range inlineScript.FindAllSubmatch(body, -1) {
		sum := sha256.Sum256(m[1])
		scripts = append(scripts, "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	// Its style sheets are made by its script while it runs: these cannot be hashed.
	w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src "+strings.Join(scripts, " ")+
		"; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	w.WriteHeader(page.status)
	_, _ = w.Write(body)
}

// wayBack leads from asynqmon, which knows nothing of us, to our own page.
const wayBack = `<a href="/" style="position:fixed;right:20px;bottom:20px;z-index:2000;padding:8px 14px;border-radius:8px;background:#1d4ed8;color:#fff;font:500 14px/1.4 system-ui,sans-serif;text-decoration:none">Back to catalog-backup</a>`

// shown are the fields of payloads and results that are printed, in this order. What
// is not named here is not shown: a field added later cannot give a secret away.
var shown = []string{"run", "instance", "stage", "generation", "plan", "tick", "job", "type", "node", "set", "result"}

// payloadText prints the payload of a task as words.
func payloadText(_ string, payload []byte) string {
	if len(payload) == 0 {
		return ""
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(payload, &fields) != nil {
		return fmt.Sprintf("not shown: %d bytes that are not a payload of catalog-backup", len(payload))
	}
	var words []string
	for _, name := range shown {
		v, ok := fields[name]
		if !ok {
			continue
		}
		delete(fields, name)
		var text string
		if json.Unmarshal(v, &text) != nil {
			if text = string(v); strings.ContainsAny(text, "{[") {
				text = "(not shown)"
			}
		}
		words = append(words, name+": "+printable(text))
	}
	if n := len(fields); n > 0 {
		words = append(words, fmt.Sprintf("%d more not shown", n))
	}
	return strings.Join(slices.Clip(words), ", ")
}
