package cron

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := Zone(name)
	require.NoError(t, err)
	return z
}

func expression(t testing.TB, text string) Expression {
	t.Helper()
	e, err := Parse(text)
	require.NoError(t, err, text)
	return e
}

// ticks are written as local time with offset, with what the clocks do to them.
func ticks(t *testing.T, text, zoneName, after string, n int) []string {
	t.Helper()
	e, z := expression(t, text), zone(t, zoneName)
	at, err := time.ParseInLocation("2006-01-02 15:04", after, z)
	require.NoError(t, err)
	out := []string{}
	for range n {
		x, ok := e.Next(at, z)
		require.True(t, ok)
		require.True(t, x.At.After(at), "ticks go forward")
		s := x.At.Format("2006-01-02 15:04 -0700")
		if x.Shift != "" {
			s += " " + x.Shift + " " + x.Wall[11:]
		}
		out = append(out, s)
		at = x.At
	}
	return out
}

func TestWhereTheClocksChange(t *testing.T) {
	for _, c := range []struct {
		what, cron, zone, after string
		want                    []string
	}{
		{"spring: a minute that does not exist", "30 2 * * *", "America/New_York", "2027-03-13 00:00",
			[]string{"2027-03-13 02:30 -0500", "2027-03-14 03:00 -0400 skipped 02:30", "2027-03-15 02:30 -0400"}},
		{"autumn: a minute that exists twice", "30 1 * * *", "America/New_York", "2026-10-31 00:00",
			[]string{"2026-10-31 01:30 -0400", "2026-11-01 01:30 -0400 twice 01:30", "2026-11-02 01:30 -0500"}},
		{"spring in Berlin", "15,45 2 * * *", "Europe/Berlin", "2027-03-27 12:00",
			[]string{"2027-03-28 03:00 +0200 skipped 02:15", "2027-03-29 02:15 +0200", "2027-03-29 02:45 +0200"}},
		{"each hour in spring: 2 and 3 o'clock are one instant", "0 * * * *", "Europe/Berlin", "2027-03-28 00:30",
			[]string{"2027-03-28 01:00 +0100", "2027-03-28 03:00 +0200 skipped 02:00", "2027-03-28 04:00 +0200"}},
		{"each hour in autumn: two hours between 2 and 3", "0 * * * *", "Europe/Berlin", "2027-10-31 01:30",
			[]string{"2027-10-31 02:00 +0200 twice 02:00", "2027-10-31 03:00 +0100", "2027-10-31 04:00 +0100"}},
		{"half an hour, spring", "15 2 * * *", "Australia/Lord_Howe", "2026-10-03 12:00",
			[]string{"2026-10-04 02:30 +1100 skipped 02:15", "2026-10-05 02:15 +1100"}},
		{"half an hour, autumn", "45 1 * * *", "Australia/Lord_Howe", "2027-04-03 12:00",
			[]string{"2027-04-04 01:45 +1100 twice 01:45", "2027-04-05 01:45 +1030"}},
		{"a day that is not there", "0 2 * * *", "Pacific/Apia", "2011-12-29 00:00",
			[]string{"2011-12-29 02:00 -1000", "2011-12-31 00:00 +1400 skipped 02:00", "2011-12-31 02:00 +1400"}},
		{"each hour of a day that is not there", "0 * * * *", "Pacific/Apia", "2011-12-29 22:30",
			[]string{"2011-12-29 23:00 -1000", "2011-12-31 00:00 +1400 skipped 00:00", "2011-12-31 01:00 +1400"}},
		{"midnight that is not there", "0 0 * * *", "America/Sao_Paulo", "2018-11-03 12:00",
			[]string{"2018-11-04 01:00 -0200 skipped 00:00", "2018-11-05 00:00 -0200"}},
		{"the night of Beirut", "0 0 * * *", "Asia/Beirut", "2026-03-28 12:00",
			[]string{"2026-03-29 01:00 +0300 skipped 00:00", "2026-03-30 00:00 +0300"}},
		{"midnight twice: Beirut in autumn shows 23 o'clock twice", "30 23 * * *", "Asia/Beirut", "2026-10-23 00:00",
			[]string{"2026-10-23 23:30 +0300", "2026-10-24 23:30 +0300 twice 23:30", "2026-10-25 23:30 +0200"}},
		{"the gap at the end of Casablanca's Ramadan", "30 2 * * *", "Africa/Casablanca", "2026-03-21 12:00",
			[]string{"2026-03-22 03:00 +0100 skipped 02:30", "2026-03-23 02:30 +0100"}},
	} {
		require.Equal(t, c.want, ticks(t, c.cron, c.zone, c.after, len(c.want)), c.what)
	}
}

func TestNextFromTheSecondTime(t *testing.T) {
	z := zone(t, "America/New_York")
	e := expression(t, "45 1 * * *")
	second := time.Date(2026, 11, 1, 6, 30, 0, 0, time.UTC) // 01:30 EST, the second time
	x, ok := e.Next(second, z)
	require.True(t, ok)
	require.Equal(t, "2026-11-02 01:45 -0500", x.At.Format("2006-01-02 15:04 -0700"), "01:45 had been already")
	every := expression(t, "* * * * *")
	x, _ = every.Next(second, z)
	require.Equal(t, "2026-11-01 02:00 -0500", x.At.Format("2006-01-02 15:04 -0700"))
	x, _ = every.Next(second.Add(30*time.Minute+59*time.Second), z)
	require.Equal(t, "2026-11-01 02:01 -0500", x.At.Format("2006-01-02 15:04 -0700"))
}

func TestCalendar(t *testing.T) {
	for _, c := range []struct {
		cron, after string
		want        []string
	}{
		{"0 0 29 2 *", "2026-01-01 00:00", []string{"2028-02-29 00:00", "2032-02-29 00:00"}},
		{"0 0 29 2 *", "2096-03-01 00:00", []string{"2104-02-29 00:00"}},
		{"0 0 31 * *", "2026-01-31 00:00", []string{"2026-03-31 00:00", "2026-05-31 00:00", "2026-07-31 00:00"}},
		{"0 0 13 * 5", "2026-11-01 00:00", []string{"2026-11-06 00:00", "2026-11-13 00:00", "2026-11-20 00:00", "2026-11-27 00:00", "2026-12-04 00:00", "2026-12-11 00:00", "2026-12-13 00:00"}},
		{"0 0 * * 5", "2026-11-01 00:00", []string{"2026-11-06 00:00", "2026-11-13 00:00"}},
		{"0 0 */1 * 5", "2026-11-01 00:00", []string{"2026-11-06 00:00", "2026-11-13 00:00"}},
		{"59 23 31 12 *", "2026-01-01 00:00", []string{"2026-12-31 23:59", "2027-12-31 23:59"}},
		{"0 0 30 2 1", "2026-11-23 12:00", []string{}}, // no February yet: Mondays in February
		{"@weekly", "2026-11-23 00:00", []string{"2026-11-29 00:00", "2026-12-06 00:00"}},
		{"@yearly", "2026-11-23 00:00", []string{"2027-01-01 00:00"}},
		{"@hourly", "2026-11-23 00:30", []string{"2026-11-23 01:00"}},
		{"5-20/5 4 1 jan mon", "2026-11-23 00:00", []string{"2027-01-01 04:05", "2027-01-01 04:10", "2027-01-01 04:15", "2027-01-01 04:20", "2027-01-04 04:05"}},
	} {
		got := []string{}
		for _, s := range ticks(t, c.cron, "UTC", c.after, len(c.want)) {
			got = append(got, s[:16])
		}
		require.Equal(t, c.want, got, c.cron)
	}
	require.Equal(t, "2027-02-01 00:00", ticks(t, "0 0 30 2 1", "UTC", "2026-11-23 12:00", 1)[0][:16])
}

func TestRefused(t *testing.T) {
	for text, why := range map[string]string{
		"":                                      "it is empty; write five fields",
		"  ":                                    "it is empty",
		"* * * *":                               "has 4 fields, not five",
		"0 30 2 * * *":                          "has 6 fields, not five",
		"60 * * * *":                            "above maximum (59)",
		"* 24 * * *":                            "above maximum (23)",
		"* * 0 * *":                             "below minimum (1)",
		"* * * 13 *":                            "above maximum (12)",
		"0 0 * * 7":                             "holds 7; write 0 or sun",
		"0 0 * * 5-7":                           "holds 7; write 0 or sun",
		"0 0 30 2 *":                            "never happens",
		"0 0 31 2,4,6,9,11 *":                   "never happens",
		"*/0 * * * *":                           "positive number",
		"*-5 * * * *":                           "not understood",
		", * * * *":                             "not understood",
		"1,,2 * * * *":                          "not understood",
		"1- * * * *":                            "not understood",
		"+1 * * * *":                            "not understood",
		"-1 * * * *":                            "not understood",
		"0 0 L * *":                             "no crontab expression",
		"0 0 1W * *":                            "no crontab expression",
		"0 0 * * 1#2":                           "not understood",
		"20-10 * * * *":                         "beyond end of range",
		"@every 1h":                             "@every has no calendar",
		"@reboot":                               "@reboot is no time",
		"@fortnightly":                          "unrecognized descriptor",
		"TZ=UTC 0 0 * * *":                      "write the zone into timezone",
		"CRON_TZ=UTC 0 0 * * *":                 "write the zone into timezone",
		"TZ=UTC":                                "write the zone into timezone",
		"99999999999999999999 * * * *":          "no crontab expression",
		strings.Repeat("1,", 400) + "1 * * * *": "longer than 500",
	} {
		_, err := Parse(text)
		require.ErrorContains(t, err, why, "%q", text)
		require.NotContains(t, err.Error(), "\n")
	}
	for _, name := range []string{"", "Local", "local", "Europe/Berln", "../../etc/passwd", "/etc/localtime", "CEST"} {
		_, err := Zone(name)
		require.Error(t, err, name)
	}
	_, ok := Expression{}.Next(time.Now(), time.UTC)
	require.False(t, ok, "the zero value has no ticks, and ends")
}

func TestSpacesAreOne(t *testing.T) {
	require.Equal(t, "30 2 * * 1-5", expression(t, " 30  2\t* * 1-5 ").String())
}

func TestWords(t *testing.T) {
	got := []string{}
	e := expression(t, "*/20 2,4-6 1 jan,feb,mar 1,3")
	for _, f := range e.Fields() {
		got = append(got, f.Name+": "+f.Means)
	}
	require.Equal(t, []string{"minute: at minute 0, 20 and 40", "hour: in the hour 2 and 4 to 6", "day of month: on day 1",
		"month: in January to March", "day of week: on Monday and Wednesday"}, got)
	require.True(t, e.Either())
	weekly := expression(t, "@weekly").Fields()
	require.Equal(t, Field{Name: "day of week", Value: "0", Means: "on Sunday"}, weekly[4])
	require.Equal(t, "every day", weekly[2].Means)
}

// The zones of the property test: every kind of odd rule of these years.
var zones = []string{"UTC", "Europe/Berlin", "Europe/London", "America/New_York", "America/Sao_Paulo", "America/Havana", "America/Asuncion",
	"America/Santiago", "America/St_Johns", "America/Scoresbysund", "Asia/Beirut", "Asia/Tehran", "Asia/Kolkata", "Asia/Amman", "Asia/Gaza", "Asia/Pyongyang",
	"Africa/Cairo", "Africa/Casablanca", "Atlantic/Azores", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Chatham", "Pacific/Norfolk", "Antarctica/Troll"}

// matches is the property test's own reading of the expressions that it uses.
var matches = map[string]func(w time.Time) bool{
	"30 2 * * *":     func(w time.Time) bool { return w.Hour() == 2 && w.Minute() == 30 },
	"0 0 * * *":      func(w time.Time) bool { return w.Hour() == 0 && w.Minute() == 0 },
	"0 * * * *":      func(w time.Time) bool { return w.Minute() == 0 },
	"*/20 0-3 * * *": func(w time.Time) bool { return w.Hour() < 4 && w.Minute()%20 == 0 },
	"45 23 29-31 * 0": func(w time.Time) bool {
		return w.Hour() == 23 && w.Minute() == 45 && (w.Day() >= 29 || w.Weekday() == time.Sunday)
	},
}

// Over ten years each minute of the calendar that an expression names happens once:
// none is skipped, none comes twice, each at the first instant that shows it or, where
// the clocks jump over it, at the instant of the jump.
func TestEachCalendarTickOnce(t *testing.T) {
	for text, match := range matches {
		often := strings.Contains(text, "/") || strings.Contains(text, "0 * ")
		for i, name := range zones {
			if often && i%3 != len(text)%3 {
				continue // these take most of the time
			}
			from := time.Date(2011, 7, 1, 0, 0, 0, 0, time.UTC).AddDate(i%2*5, 0, 0)
			to := from.AddDate(10, 0, 0)
			require.NoError(t, checkTicks(expression(t, text), match, zone(t, name), from, to), "%s in %s", text, name)
		}
	}
}

func checkTicks(e Expression, match func(time.Time) bool, z *time.Location, from, to time.Time) error {
	var at []time.Time
	walls := []string{}
	for t := from; ; {
		x, ok := e.Next(t, z)
		if !ok || !x.At.After(t) {
			return fmt.Errorf("after %s comes %v", t, x)
		}
		if x.At.After(to) {
			break
		}
		t = x.At
		at, walls = append(at, t), append(walls, x.Wall)
	}
	shown := func(t time.Time) time.Time { // what the clocks show, as if UTC
		l := t.In(z)
		return time.Date(l.Year(), l.Month(), l.Day(), l.Hour(), l.Minute(), l.Second(), 0, time.UTC)
	}
	used, shows := make([]bool, len(at)), make([]time.Time, len(at))
	for i := range at {
		shows[i] = shown(at[i])
	}
	// A day at each end is left out: a change of the clocks may fall onto the border.
	last := shown(to).Add(-25 * time.Hour)
	for w := shown(from).Add(25 * time.Hour).Truncate(time.Hour); w.Before(last); w = w.Add(5 * time.Minute) { // what the expressions name
		if !match(w) {
			continue
		}
		// The first tick at which the clocks show w or more is w's.
		i, _ := slices.BinarySearchFunc(shows, w, func(t, w time.Time) int {
			if t.Before(w) {
				return -1
			}
			return 1
		})
		if i == len(at) {
			return fmt.Errorf("%s never happens", w)
		}
		used[i] = true
		before := shown(at[i].Add(-time.Second))
		switch s := shows[i]; {
		case s.Equal(w): // the first time: nothing earlier shows it
			for _, d := range []time.Duration{30 * time.Minute, time.Hour, 2 * time.Hour, 24 * time.Hour} {
				if shown(at[i].Add(-d)).Equal(w) {
					return fmt.Errorf("%s happens the second time, at %s", w, at[i])
				}
			}
		case before.Before(w): // right after a jump over w
		default:
			return fmt.Errorf("%s happens at %s", w, at[i])
		}
		if s := walls[i]; s > w.Format(wallForm) {
			return fmt.Errorf("%s is called %s", w, s)
		}
	}
	for i := range at {
		if w := shows[i]; !used[i] && w.After(shown(from).Add(25*time.Hour)) && w.Before(last) {
			return fmt.Errorf("%s happens, and no minute of the calendar asks for it", at[i])
		}
	}
	return nil
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"30 2 * * 1-5", "@daily", "TZ=", "*/5 * * * *", "0 0 29 2 *", "?", "1-2/3,4 * * * *"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := Parse(s)
		if err != nil {
			return
		}
		x, ok := e.Next(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.UTC)
		if !ok || len(e.Fields()) != 5 {
			t.Fatalf("%q has no tick (%v)", s, x)
		}
	})
}
