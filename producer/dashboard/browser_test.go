package dashboard

import (
	"context"
	"fmt"
	"testing"
	"time"

	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/stretchr/testify/require"
)

// TestInTheBrowser drives a real Chromium over the real dashboard on a real Redis.
func TestInTheBrowser(t *testing.T) {
	browser := chromium(t)
	for name, test := range map[string]func(*testing.T, *tab){
		"looks":     looks,
		"empty":     looksEmpty,
		"progress":  progressMoves,
		"away":      redisGoesAway,
		"queues":    queuesAreShown,
		"actions":   actionsWork,
		"noActions": actionsAreAbsent,
	} {
		t.Run(name, func(t *testing.T) { test(t, newTab(t, browser)) })
	}
}

// furnish makes a site as it looks after some weeks, and returns the running run.
func furnish(s *site) run.Record {
	s.worker("catalog", "host1")
	day := time.Now().Add(-80 * time.Hour)
	s.setClock(day)
	bad := s.open("catalog", set.Full)
	r := s.claim(bad.ID)
	s.setClock(day.Add(9 * time.Second))
	r = s.advance(r, "postgres")
	for i, why := range []string{"connect to PostgreSQL at /var/run/postgresql: connection refused", "connect to PostgreSQL at /var/run/postgresql: connection refused"} {
		r = s.claim(r.ID)
		s.setClock(day.Add(time.Duration(30+60*i) * time.Second))
		r = s.again(r, run.Erred, why, false)
	}
	r = s.claim(r.ID)
	s.setClock(day.Add(100 * time.Second))
	s.again(r, run.Erred, "pgbackrest: page checksum error in base/16401/2619, block 12; repair the table, or set postgres.allow_corrupt_pages: true", true)
	s.clean(bad.ID)
	sets := []set.Summary{}
	for i, id := range []string{"202611150200_10-0-0-147420", "202611160200_10-0-0-147420", "202611170200_10-0-0-147420", "202611180200_10-0-0-147420", "202611190200_10-0-0-147420", "202611210200_10-0-0-147420", "202611220200_10-0-0-147420"} {
		age := time.Duration(7-i)*24*time.Hour - 4*time.Hour
		if i > 4 {
			age -= 0
		}
		proof := &set.Proof{Kind: "verify", At: time.Now().Add(-age + 40*time.Minute), Good: true}
		if i == 6 {
			proof = nil
		}
		sets = append(sets, summary(id, age, 184_000_000_000+int64(i)*1_270_000_000, proof))
	}
	s.publish("catalog", run.Published{At: time.Now().Add(-20 * time.Second), Node: "host1", Dir: "/data2/backup", Sets: sets,
		Foreign: []string{"202109232027_9-5-0-1_alation_backup.tar.gz"}})
	s.setClock(time.Now().Add(-41 * time.Minute))
	r = s.claim(s.open("catalog", set.Full).ID)
	require.NoError(s.t, s.store.Note(ctx, r.ID, r.Hold(), run.Facts{Set: "202611231817_10-0-0-147420", Notes: []string{"pgBackRest 2.45, zst"}}))
	s.setClock(time.Now().Add(-40 * time.Minute))
	r = s.claim(s.advance(r, "postgres").ID)
	s.setClock(time.Now().Add(-29 * time.Minute))
	r = s.claim(s.again(r, run.Crashed, "the worker died", false).ID)
	s.setClock(time.Time{})
	s.progress(r, 79_400_000_000, 184_900_000_000, 61_000_000)
	return r
}

// plans are as a configuration has them; the verb's test sees real ones.
func plans(context.Context, string) (Plans, error) {
	tomorrow := time.Now().UTC().Truncate(24 * time.Hour).Add(26 * time.Hour)
	return Plans{Known: true, Schedulers: 1, Plans: []Plan{
		{Name: "nightly", Cron: "0 2 * * *", Timezone: "UTC", Job: "full backup", Next: tomorrow, LastTick: tomorrow.Add(-24 * time.Hour), LastResult: "opened", LastRun: "20261123t020000z-abcdefgh"},
		{Name: "proof", Cron: "30 6 * * sun", Timezone: "Europe/Berlin", Job: "verify", Paused: true, PausedBy: "root"},
	}}, nil
}

func looks(t *testing.T, b *tab) {
	s := newSite(t, func(o *Options) { o.AllowActions, o.Plans = true, plans })
	r := furnish(s)
	for _, look := range []struct {
		name, scheme  string
		width, height int64
	}{{"light", "light", 1280, 900}, {"dark", "dark", 1280, 900}, {"phone", "light", 390, 844}} {
		b.size(look.width, look.height)
		b.scheme(look.scheme)
		b.visit(s, "/")
		b.shows("Stage postgres 42 %")
		b.accessible()
		b.picture(look.name)
		for path, name := range map[string]string{"/runs/" + r.ID: "run", "/instances/catalog": "", "/sets/catalog/202611220200_10-0-0-147420": "",
			"/runs/" + r.ID + "/cancel": "", "/runs/20261123t184702z-aaaaaaaa": "none"} {
			b.visit(s, path)
			b.until("document.readyState === 'complete'")
			b.accessible()
			if name == "none" {
				b.forget() // the page of a run that is not there is a 404, which the console notes
			}
			b.quiet()
			if name == "run" && look.name == "light" {
				b.picture(name)
			}
		}
	}
}

// looksEmpty sees an installation on its first day.
func looksEmpty(t *testing.T, b *tab) {
	s := newSite(t)
	for _, scheme := range []string{"light", "dark"} {
		b.scheme(scheme)
		b.visit(s, "/")
		b.shows("No live worker serves instance catalog")
		b.shows("No run yet. Ask for one: producer backup-all")
		b.shows("No worker of catalog has told of its sets yet")
		b.accessible()
		b.quiet()
	}
}

// progressMoves sees a run go through its stages without loading the page anew.
func progressMoves(t *testing.T, b *tab) {
	s := newSite(t)
	s.worker("catalog", "host1")
	b.visit(s, "/")
	b.shows("No run yet")
	b.eval("window.stays = true", nil)
	r := s.open("catalog", set.Full)
	b.shows("prepare: waits for a worker")
	r = s.claim(r.ID)
	for _, percent := range []int64{10, 55} {
		s.progress(r, percent<<20, 100<<20, 5<<20)
		b.until(fmt.Sprintf("document.querySelector('progress')?.value === %d", percent))
	}
	b.shows("55.0 MiB of 100 MiB")
	b.eval("document.querySelector('.runline a').focus()", nil)
	s.progress(r, 56<<20, 100<<20, 5<<20)
	b.until("document.querySelector('progress')?.value === 56")
	var focused string
	b.eval("document.activeElement.innerText", &focused)
	require.Equal(t, r.ID, focused, "who is somewhere with the keyboard stays there")
	s.progress(r, 55<<20, 100<<20, 5<<20)
	b.shows("55.0 MiB of 100 MiB")
	b.shows("5.0 MiB/s")
	require.Contains(t, b.text("#announce"), "catalog: prepare: attempt 1 on host1")
	r = s.again(s.reload(r.ID), run.Erred, "disk <b>full</b>\x1b[31m\u202e", false)
	b.shows(`disk <b>full</b>\u001b[31m\u202e`)
	r = s.claim(r.ID)
	r = s.advance(r, "postgres")
	b.until("document.querySelector('#announce').textContent.includes('postgres: waits to begin')")
	r = s.claim(r.ID)
	require.NoError(t, s.store.Note(ctx, r.ID, r.Hold(), run.Facts{Set: "202611231847_10-0-0-147420"}))
	s.advance(r, "")
	s.publish("catalog", run.Published{At: time.Now(), Node: "host1", Dir: "/d", Sets: []set.Summary{summary("202611231847_10-0-0-147420", time.Second, 1<<30, nil)}})
	b.shows("Last run")
	b.shows("succeeded")
	b.shows("Nothing needs attention")
	b.shows("not proven yet")
	var stayed bool
	b.eval("window.stays === true", &stayed)
	require.True(t, stayed, "all of that came into the page that was open")
	b.quiet()

	b.click(`.runline a`)
	b.shows("All attempts, in their order")
	require.Contains(t, b.text("#attempts"), "disk <b>full</b>")
	b.accessible()
	b.quiet()
}

// redisGoesAway keeps the last state on an open page, says so, and goes on by itself.
func redisGoesAway(t *testing.T, b *tab) {
	s := newSite(t)
	s.worker("catalog", "host1")
	r := s.claim(s.open("catalog", set.Full).ID)
	s.progress(r, 10, 100, 1)
	b.visit(s, "/")
	b.shows("10 %")
	require.NoError(t, s.redis.Shutdown())
	b.shows("Redis is away. This is how things were")
	require.Contains(t, b.text("main"), "10 %")
	require.NoError(t, s.redis.Start())
	s.progress(s.reload(r.ID), 20, 100, 1)
	b.shows("20 %")
	b.until("document.getElementById('lost').hidden")

	require.NoError(t, s.redis.Shutdown())
	b.visit(s, "/runs/"+r.ID)
	b.shows("Nothing is known of runs and sets until it answers again")
	b.accessible()
	require.NoError(t, s.redis.Start())
	b.shows("All attempts, in their order")
}

// queuesAreShown looks into asynqmon, and is refused to change anything there.
func queuesAreShown(t *testing.T, b *tab) {
	s := newSite(t)
	s.worker("catalog", "host1")
	r := s.open("catalog", set.Full)
	for _, scheme := range []string{"light", "dark"} {
		b.scheme(scheme)
		b.visit(s, "/asynqmon/queues/catalog?status=pending")
		b.shows("run: " + r.ID + ", instance: catalog, stage: prepare, generation: 1")
		b.quiet()
	}
	b.scheme("light")
	b.visit(s, "/asynqmon/")
	b.until("document.querySelector('a[href=\"/asynqmon/queues/catalog\"]')")
	b.picture("queues")
	b.visit(s, "/asynqmon/queues/catalog/tasks/"+r.Epoch+":"+r.ID+":prepare:1")
	b.shows("stage: prepare")
	b.visit(s, "/asynqmon/redis")
	b.shows("Redis Info")
	b.quiet()
	for _, write := range [][2]string{{"DELETE", "/queues/catalog"}, {"POST", "/queues/catalog:pause"}, {"DELETE", "/queues/catalog/pending_tasks:delete_all"},
		{"POST", "/queues/catalog/pending_tasks:archive_all"}} {
		var status int
		b.eval(fmt.Sprintf("fetch(location.origin + '/asynqmon/api%s', {method: '%s'}).then(a => a.status)", write[1], write[0]), &status)
		require.Equal(t, 405, status, "%v", write)
	}
	b.forget()
	b.visit(s, "/asynqmon/")
	b.click("body > a[href='/']")
	b.shows("prepare: waits for a worker")
	b.quiet()
}

// actionsWork starts a backup and cancels it, as an administrator does.
func actionsWork(t *testing.T, b *tab) {
	s := newSite(t, func(o *Options) { o.AllowActions = true })
	s.worker("catalog", "host1")
	b.visit(s, "/")
	b.click("#incremental-catalog")
	b.shows("waits for a worker of catalog")
	ids, err := s.store.Open(ctx, "catalog")
	require.NoError(t, err)
	require.Len(t, ids, 1)
	r := s.claim(ids[0])
	require.Equal(t, "incremental", r.Requested)
	require.Equal(t, int64(1), s.rdb.LLen(ctx, "asynq:{catalog}:pending").Val(), "the first stage is in the queue")
	b.shows("prepare: attempt 1 on host1")
	b.click("#cancel")
	b.shows("Cancel this run?")
	require.False(t, s.reload(r.ID).Cancel, "asking is not doing")
	b.click("#confirm")
	b.shows("a cancel was asked for")
	require.True(t, s.reload(r.ID).Cancel)
	_, err = s.store.Stop(ctx, s.reload(r.ID), s.reload(r.ID).Generation, run.Cancelled, "cancelled", false)
	require.NoError(t, err)
	s.clean(r.ID)
	b.until("document.querySelector('.pagehead .pill').innerText.trim() === 'cancelled'")
	b.visit(s, "/")
	b.click("#full-catalog")
	b.shows("waits for a worker of catalog")
	b.quiet()
	require.Contains(t, s.log.String(), `action="start a backup"`)
	require.Contains(t, s.log.String(), `action="cancel a run"`)
	require.Contains(t, s.log.String(), "user=admin")
	require.Contains(t, s.log.String(), "remote=\"127.0.0.1:")
	require.Contains(t, s.log.String(), "run="+r.ID)
}

// actionsAreAbsent looks for buttons and tries to do without them.
func actionsAreAbsent(t *testing.T, b *tab) {
	s := newSite(t)
	s.worker("catalog", "host1")
	r := s.claim(s.open("catalog", set.Full).ID)
	for _, path := range []string{"/", "/instances/catalog", "/runs/" + r.ID, "/runs/" + r.ID + "/cancel"} {
		b.visit(s, path)
		b.shows(r.ID)
		var forms int
		b.eval("document.querySelectorAll('form, button, .button').length", &forms)
		require.Zero(t, forms, path)
	}
	for _, path := range []string{"/runs/" + r.ID + "/cancel", "/instances/catalog/backups"} {
		var status int
		b.eval(fmt.Sprintf("fetch(location.origin + '%s', {method: 'POST'}).then(a => a.status)", path), &status)
		require.Equal(t, 403, status, path)
	}
	require.False(t, s.reload(r.ID).Cancel)
}
