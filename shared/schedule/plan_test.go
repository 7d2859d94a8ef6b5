package schedule

import (
	"testing"
	"time"

	"catalog-backup/shared/config"

	"github.com/stretchr/testify/require"
)

func plans(t *testing.T, text string) []Plan {
	t.Helper()
	c, err := config.Parse("/etc/c.yaml", []byte("instance: c\n"+text), func(string) string { return "" })
	require.NoError(t, err)
	return Plans(c)
}

func at(t *testing.T, text string) time.Time {
	t.Helper()
	x, err := time.Parse(time.RFC3339, text)
	require.NoError(t, err)
	return x
}

func TestPlans(t *testing.T) {
	require.Empty(t, plans(t, ""))
	p := plans(t, `schedules: [{name: nightly, cron: "30 2 * * *", timezone: Europe/Berlin}]
alation.backup.scheduled_minute: 15
alation.backup.scheduled_hour: 22
alation.backup.scheduled_day: sat,sun
`)
	require.Len(t, p, 2)
	require.Equal(t, []string{"alation", "15 22 * * sat,sun", "UTC", "backup", "full", "skip"},
		[]string{p[0].Name, p[0].Cron, p[0].Timezone, p[0].Job, p[0].Type, p[0].Overlap})
	require.Equal(t, time.Hour, p[0].CatchUp)
	require.Equal(t, "2026-11-28T22:15:00Z", p[0].Next(at(t, "2026-11-23T00:00:00Z")).Format(time.RFC3339))
	require.Equal(t, "2026-11-24T02:30:00+01:00", p[1].Next(at(t, "2026-11-23T12:00:00Z")).Format(time.RFC3339))
	found, ok := Find(p, "nightly")
	require.True(t, ok)
	require.Equal(t, p[1], found)
	_, ok = Find(p, "x")
	require.False(t, ok)
	only := plans(t, "alation.backup.scheduled_minute: 7\n")
	require.Equal(t, "7 0 * * *", only[0].Cron, "hour and day have the documented defaults")
}

func TestTicks(t *testing.T) {
	p := plans(t, `schedules: [{name: a, cron: "*/30 * * * *"}, {name: rare, cron: "0 0 29 2 *"}]`)
	from, to := at(t, "2026-11-23T10:00:00Z"), at(t, "2026-11-23T11:00:00Z")
	require.Equal(t, []time.Time{at(t, "2026-11-23T10:30:00Z"), to}, p[0].Ticks(from, to), "without from, with to")
	require.Empty(t, p[0].Ticks(to, from))
	require.Len(t, p[0].NextN(from, 5), 5)
	latest, more := p[0].Latest(from.AddDate(-50, 0, 0), to, 3)
	require.Equal(t, []time.Time{from, at(t, "2026-11-23T10:30:00Z"), to}, latest)
	require.True(t, more)
	latest, more = p[0].Latest(from, to, 3)
	require.Len(t, latest, 2)
	require.False(t, more)
	latest, more = p[1].Latest(at(t, "2020-01-01T00:00:00Z"), to, 20)
	require.Equal(t, []time.Time{at(t, "2020-02-29T00:00:00Z"), at(t, "2024-02-29T00:00:00Z")}, latest)
	require.False(t, more)
	require.True(t, Plan{}.Next(from).IsZero())
}
