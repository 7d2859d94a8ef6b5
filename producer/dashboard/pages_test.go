package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
)

const good, other = "202611220200_10-0-0-147420", "202611230200_10-0-0-147420"

func proof(ok bool) *set.Proof {
	p := &set.Proof{Kind: "verify", At: time.Now().Add(-time.Hour), Good: ok}
	if !ok {
		p.Damage = []set.Damage{{Entry: "files/a", Problem: "its hash differs"}}
	}
	return p
}

// What an administrator must hear of.
func TestNeedsAttention(t *testing.T) {
	fresh, old := summary(good, time.Hour, 1, proof(true)), summary(good, 30*time.Hour, 1, proof(true))
	damaged, missing := summary(other, time.Minute, 1, proof(false)), summary(other, time.Minute, 1, proof(true))
	missing.Missing = []string{"/data2/backup/x.tar.gz"}
	child := summary("202611240200_10-0-0-147420", time.Second, 1, nil)
	child.Type, child.Parent = set.Incremental, &damaged.Set
	orphan := summary("202611250200_10-0-0-147420", time.Second, 1, nil)
	orphan.Type, orphan.Parent = set.Incremental, new(string)
	*orphan.Parent = "202601010200_10-0-0-147420"
	circle := summary("202611260200_10-0-0-147420", time.Second, 1, nil)
	circle.Parent = &circle.Set
	for name, c := range map[string]struct {
		sets  []set.Summary
		wants []string
		quiet bool
	}{
		"a fresh set":       {[]set.Summary{fresh}, nil, true},
		"an old set":        {[]set.Summary{old}, []string{"The newest good set of instance catalog is 1d06h old, more than 1d02h"}, false},
		"a damaged one":     {[]set.Summary{old, damaged}, []string{"is 1d06h old", "Set " + other + " is damaged, as verify found: files/a: its hash differs."}, false},
		"one missing":       {[]set.Summary{fresh, missing}, []string{"Set " + other + ": files are missing"}, false},
		"only damaged ones": {[]set.Summary{damaged}, []string{"Instance catalog has no good set."}, false},
		"none":              {[]set.Summary{}, []string{"Instance catalog has no set yet."}, false},
		"a broken chain": {[]set.Summary{fresh, damaged, child, orphan, circle}, []string{"Set " + child.Set + " cannot be restored: it needs " + other + ", which is damaged",
			"Set " + orphan.Set + " cannot be restored: it needs 202601010200_10-0-0-147420, which is not there", "chain broken"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.worker("catalog", "host1")
			s.publish("catalog", run.Published{At: time.Now(), Node: "host1", Dir: "/data2/backup", Sets: c.sets})
			for _, path := range []string{"/", "/instances/catalog"} {
				status, body, _ := s.get(path)
				require.Equal(t, http.StatusOK, status)
				for _, want := range c.wants {
					require.Contains(t, body, want)
				}
				require.Equal(t, c.quiet, strings.Contains(body, "Nothing needs attention"), body)
			}
			for _, x := range c.sets {
				status, body, _ := s.get("/sets/catalog/" + x.Set)
				require.Equal(t, http.StatusOK, status)
				require.Contains(t, body, "worker restore "+x.Set)
			}
		})
	}
}

func TestProblemsOfNodes(t *testing.T) {
	s := newSite(t)
	s.worker("catalog", "host1")
	s.publish("catalog", run.Published{At: time.Now().Add(-2 * time.Hour), Node: "host2", Dir: "/d", Sets: []set.Summary{summary(good, time.Hour, 1, proof(true))},
		Problems: []string{"x.json: it is no manifest"}, Foreign: []string{"old_alation_backup.tar.gz"}})
	_, body, _ := s.get("/")
	for _, want := range []string{"Node host2: x.json: it is no manifest", "Node host2 has not told of its sets for 2h00m", "1 file of other origin in /d on host2", "old_alation_backup.tar.gz"} {
		require.Contains(t, body, want)
	}
	require.NoError(t, s.rdb.HSet(ctx, "catalog-backup:catalog:sets", "host3", "{").Err())
	r := s.open("catalog", set.Full)
	status, body, _ := s.get("/")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "The sets of instance catalog cannot be read")
	require.Contains(t, body, r.ID, "the rest of the page is there")
	s.claim(r.ID)
	require.NoError(t, s.rdb.HSet(ctx, "catalog-backup:run:"+r.ID, "attempt:1", "{").Err())
	status, body, _ = s.get("/runs/" + r.ID)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "<dt>Damaged</dt><dd>attempt:1: it is damaged, and left out: {</dd>")
	status, _, _ = s.get("/")
	require.Equal(t, http.StatusOK, status)
}

// Whatever stands in Redis, it is text on the page and no more.
func TestHostileTexts(t *testing.T) {
	evil := "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b]0;x\a\u202eabc\x80\r\njavascript:alert(1)"
	s := newSite(t)
	require.NoError(t, s.store.SignIn(ctx, "catalog", run.Worker{ID: evil, Node: evil, Host: evil, Version: evil, Started: time.Now()}))
	x := summary(evil, time.Hour, 1, &set.Proof{Kind: evil, At: time.Now(), Damage: []set.Damage{{Entry: evil, Problem: evil}}})
	x.Parts, x.Warnings, x.Missing, x.Archives, x.Parent, x.Type = []string{evil}, []string{evil}, []string{evil}, []string{evil}, &evil, set.Type(evil)
	s.publish("catalog", run.Published{At: time.Now(), Node: evil, Dir: evil, Sets: []set.Summary{x}, Foreign: []string{evil}, Problems: []string{evil}})
	r := s.claim(s.open("catalog", set.Full).ID)
	require.NoError(t, s.rdb.HSet(ctx, "catalog-backup:run:"+r.ID, "attempt:7", evil, "rate", evil, "ending", evil).Err())
	require.NoError(t, s.store.Note(ctx, r.ID, r.Hold(), run.Facts{Set: evil, Manifest: evil, Archives: []string{evil}, Warnings: []string{evil}, Notes: []string{evil}}))
	s.again(r, run.Erred, evil, true)
	for field, v := range map[string]string{"requested": evil, "node": evil, "type": evil} {
		require.NoError(t, s.rdb.HSet(ctx, "catalog-backup:run:"+r.ID, field, v).Err())
	}
	require.NoError(t, s.rdb.SAdd(ctx, "catalog-backup:instances", evil, "../x", "Other").Err())
	for _, path := range []string{"/", "/instances/catalog", "/runs/" + r.ID, "/sets/catalog/" + url.PathEscape(evil), "/instances/" + url.PathEscape(evil), "/runs/" + url.PathEscape(evil), "/" + url.PathEscape(evil)} {
		_, body, _ := s.get(path)
		require.NotContains(t, body, "<script>a", path)
		require.NotContains(t, body, "<img", path)
		require.NotContains(t, body, `href="javascript:`)
		require.NotRegexp(t, regexp.MustCompile("[\x00-\x09\x0b-\x1f\x7f\u202e]"), body, path)
	}
	_, body, _ := s.get("/")
	require.Contains(t, body, "alert(1)", "it is shown")
}

func TestRedisAway(t *testing.T) {
	s := newSite(t)
	r := s.open("catalog", set.Full)
	require.NoError(t, s.redis.Shutdown())
	for _, path := range []string{"/", "/instances/catalog", "/runs/" + r.ID, "/sets/catalog/" + good} {
		status, body, header := s.get(path)
		require.Equal(t, http.StatusServiceUnavailable, status, path)
		require.Contains(t, body, "Redis is away")
		require.Contains(t, body, s.redis.Addr, "the page says where it should be")
		require.NotEmpty(t, header.Get("Retry-After"))
	}
	status, _, _ := s.get("/static/dashboard.css")
	require.Equal(t, http.StatusOK, status)
	require.NoError(t, s.redis.Start())
	status, _, _ = s.get("/")
	require.Equal(t, http.StatusOK, status)
}

func TestManyInstances(t *testing.T) {
	s := newSite(t)
	for i := range 6 {
		name := fmt.Sprintf("catalog-%d", i)
		s.worker(name, "host1")
		s.publish(name, run.Published{At: time.Now(), Node: "host1", Dir: "/d", Sets: []set.Summary{summary(good, time.Hour, 1<<30, nil)}})
	}
	r := s.claim(s.open("catalog-3", set.Full).ID)
	s.progress(r, 30, 100, 1)
	status, body, _ := s.get("/")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "All 7 instances seen in this Redis", "six, and the configured one")
	require.Contains(t, body, "30 %")
	require.Contains(t, body, "No live worker serves instance catalog:")
	status, body, _ = s.get("/instances/catalog-3")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, r.ID)
}

func TestNotThere(t *testing.T) {
	s := newSite(t)
	for _, path := range []string{"/x", "/instances/other", "/instances/..%2f", "/runs/x", "/runs/20261123t184702z-abcdefgh", "/sets/catalog/" + good, "/sets/other/" + good, "/asynqmon/api/metrics",
		"/asynqmon/static/js/main.5adda2da.chunk.js.map", "/asynqmon/static/x.js", "/static/x", "/metrics"} {
		status, _, _ := s.get(path)
		require.Equal(t, http.StatusNotFound, status, path)
	}
}

// Forms count only if our page made them for this user and this purpose.
func TestForms(t *testing.T) {
	s := newSite(t, func(o *Options) { o.AllowActions = true })
	token := func(path string, change ...func(*http.Request)) string {
		_, body, _ := s.get(path, change...)
		m := regexp.MustCompile(`name="token" value="([0-9a-f]+)"`).FindStringSubmatch(body)
		require.NotNil(t, m, body)
		return m[1]
	}
	post := func(path, token, kind string, change ...func(*http.Request)) int {
		form := url.Values{"token": {token}, "type": {kind}}.Encode()
		status, _, _ := s.ask(http.MethodPost, path, append([]func(*http.Request){func(r *http.Request) {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Body, r.ContentLength = http.NoBody, 0
			body, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL.String(), strings.NewReader(form))
			require.NoError(t, err)
			r.Body, r.ContentLength = body.Body, body.ContentLength
		}}, change...)...)
		return status
	}
	const start = "/instances/catalog/backups"
	mine := token("/")
	for name, bad := range map[string]string{"none": "", "another": strings.Repeat("0", 64), "of another form": s.s.token("admin", "/instances/other/backups"), "of another user": s.s.token("eve", start)} {
		require.Equal(t, http.StatusForbidden, post(start, bad, "full"), name)
	}
	require.Equal(t, http.StatusForbidden, post(start, mine, "full", with("Authorization", "Bearer token-"+secret)), "the form was made for another")
	require.Equal(t, http.StatusBadRequest, post(start, mine, "sideways"))
	require.Equal(t, http.StatusNotFound, post("/instances/unknown/backups", s.s.token("admin", "/instances/unknown/backups"), "full"))
	ids, err := s.store.Open(ctx, "catalog")
	require.NoError(t, err)
	require.Empty(t, ids, "nothing of that started anything")

	require.Equal(t, http.StatusSeeOther, post(start, mine, "full"))
	require.Equal(t, http.StatusConflict, post(start, mine, "full"), "one run at a time")
	ids, err = s.store.Open(ctx, "catalog")
	require.NoError(t, err)
	require.Len(t, ids, 1)
	cancel := "/runs/" + ids[0] + "/cancel"
	require.Equal(t, http.StatusForbidden, post(cancel, mine, ""), "the token of a start cancels nothing")
	stop := token(cancel)
	r := s.claim(ids[0])
	require.NoError(t, s.store.Holds(ctx, r.ID, r.Hold(), r.Epoch, true))
	require.Equal(t, http.StatusConflict, post(cancel, stop, ""), "too late: it commits")
	s.advance(r, "")
	require.Equal(t, http.StatusSeeOther, post(cancel, stop, ""), "it is over")
	require.Equal(t, run.Succeeded, s.reload(r.ID).State)
	require.NoError(t, s.redis.Shutdown())
	require.Equal(t, http.StatusServiceUnavailable, post(start, mine, "full"))
	require.Contains(t, s.log.String(), "refused: a run is active")
	require.Contains(t, s.log.String(), "refused: the form's token is wrong")
	require.Contains(t, s.log.String(), "result=late")
}

func TestPayloads(t *testing.T) {
	for payload, want := range map[string]string{
		`{"run":"r1","instance":"catalog","stage":"prepare","generation":3}`:       "run: r1, instance: catalog, stage: prepare, generation: 3",
		`{"password":"geheim","run":"r1"}`:                                         "run: r1, 1 more not shown",
		`{"run":{"password":"geheim"},"stage":["geheim"],"instance":"a\u001b[1m"}`: `run: (not shown), instance: a\u001b[1m, stage: (not shown)`,
		`not json with geheim`: "not shown: 20 bytes that are not a payload of catalog-backup",
		``:                     "",
		`null`:                 "",
	} {
		got := payloadText("t", []byte(payload))
		require.Equal(t, want, got)
		require.NotContains(t, got, "geheim")
	}
}

// asynqmon works whatever way to Redis the configuration names, and shows readable
// payloads only.
func TestQueuesAreForLooking(t *testing.T) {
	s := newSite(t)
	r := s.claim(s.open("catalog", set.Full).ID)
	var answer struct {
		Tasks []struct {
			Payload string `json:"payload"`
		} `json:"tasks"`
	}
	status, body, _ := s.get("/asynqmon/api/queues/catalog/pending_tasks")
	require.Equal(t, http.StatusOK, status)
	require.NoError(t, json.Unmarshal([]byte(body), &answer))
	require.Len(t, answer.Tasks, 1)
	require.Equal(t, "run: "+r.ID+", instance: catalog, stage: prepare, generation: 1", answer.Tasks[0].Payload)
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT"} {
		for _, path := range []string{"/asynqmon/api/queues/catalog", "/asynqmon/api/queues/catalog:pause", "/asynqmon/", "/asynqmon/api/../api/queues/catalog"} {
			status, _, _ := s.ask(method, path)
			require.Contains(t, []int{http.StatusMethodNotAllowed, http.StatusTemporaryRedirect, http.StatusMovedPermanently, http.StatusNotFound, http.StatusBadRequest}, status, "%s %s", method, path)
		}
	}
	paused, err := s.rdb.Exists(ctx, "asynq:{catalog}:paused").Result()
	require.NoError(t, err)
	require.Zero(t, paused)
	_, body, _ = s.get("/asynqmon/queues/catalog.host1")
	require.Contains(t, body, "<!doctype html>", "a queue's name has a dot")
	require.NotContains(t, body, "googleapis")
	require.NotContains(t, body, "manifest.json")
	_, _, header := s.get("/asynqmon/static/media/logo-color.c2b0c1f3.svg")
	require.Equal(t, "image/svg+xml", header.Get("Content-Type"))
}

// Whether it lives is for everybody to know, why not is not.
func TestHealthNeedsNoLogIn(t *testing.T) {
	says := func(status int, text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); _, _ = w.Write([]byte(text)) })
	}
	s := newSite(t, func(o *Options) {
		o.Health, o.Ready, o.Metrics = says(200, "ok   redis"), says(503, "BAD  redis at 192.0.2.7"), says(200, "numbers")
	})
	status, body, _ := s.get("/healthz", nobody, func(r *http.Request) { r.Host = "dashboard.compose.example" })
	require.Equal(t, 200, status)
	require.Equal(t, "ok   dashboard\n", body)
	status, body, _ = s.get("/readyz", nobody)
	require.Equal(t, 503, status)
	require.Equal(t, "BAD  dashboard: log in to see why\n", body)
	_, body, _ = s.get("/readyz")
	require.Equal(t, "BAD  redis at 192.0.2.7", body)
	waits := 0
	s.s.guard.wait = func(context.Context, time.Duration) { waits++ }
	_, body, _ = s.get("/readyz", basic("admin", "guess"))
	require.Equal(t, "BAD  dashboard: log in to see why\n", body)
	require.Equal(t, 1, waits, "here nobody guesses faster than elsewhere")
	status, _, _ = s.get("/metrics", nobody)
	require.Equal(t, http.StatusUnauthorized, status)
	_, body, _ = s.get("/metrics")
	require.Equal(t, "numbers", body)
}

// A Redis that answers nothing does not hold the page for ever.
func TestFrozenRedis(t *testing.T) {
	s := newSite(t)
	require.NoError(t, s.redis.Stop())
	defer func() { require.NoError(t, s.redis.Cont()) }()
	status, _, _ := s.get("/")
	require.Equal(t, http.StatusServiceUnavailable, status)
}
