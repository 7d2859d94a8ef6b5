package config

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPlans(t *testing.T) {
	c := parse(t, `instance: c
schedule:
  catch_up: 2h
  overlap: queue
schedules:
  - name: nightly
    cron: "30  2 * * *"
    timezone: Europe/Berlin
    type: incremental
  - {name: check, cron: "@weekly", job: verify, overlap: skip, catch_up: 24h}
alation.backup.scheduled_hour: 3
alation.backup.scheduled_day: mon,thu
`)
	require.Equal(t, []Plan{
		{Name: "nightly", Cron: "30 2 * * *", Timezone: "Europe/Berlin", Job: "backup", Type: "incremental", CatchUp: 2 * time.Hour, Overlap: "queue"},
		{Name: "check", Cron: "@weekly", Timezone: "UTC", Job: "verify", Type: "full", CatchUp: 24 * time.Hour, Overlap: "skip"},
	}, c.Schedules)
	require.Equal(t, Scheduled{Set: true, Hour: 3, Days: "mon,thu"}, c.Scheduled)
	require.Empty(t, parse(t, "instance: c\nschedules:\n").Schedules)
	require.Empty(t, parse(t, "instance: c\nschedules: []\n").Schedules)
	aliases := parse(t, "instance: c\nschedules:\n  - &a {name: a, cron: &x '@daily'}\n  - {name: b, cron: *x}\n")
	require.Equal(t, "@daily", aliases.Schedules[1].Cron)
}

func TestPlansRefused(t *testing.T) {
	for text, want := range map[string]string{
		"schedules: nightly\n":                                                            "/etc/c.yaml:2: schedules: is no list; write entries such as",
		"schedules: {name: a, cron: '@daily'}\n":                                          "/etc/c.yaml:2: schedules: is no list",
		"schedules:\n  - nightly\n":                                                       "/etc/c.yaml:3: schedules[0]: is no plan",
		"schedules:\n  - name: a\n    cron: '61 * * * *'\n":                               "/etc/c.yaml:4: schedules[0].cron: ",
		"schedules:\n  - name: a\n    cron: '0 0 30 2 *'\n":                               "never happens",
		"schedules:\n  - name: a\n    cron: '@every 1h'\n":                                "@every has no calendar",
		"schedules:\n  - name: a\n":                                                       "/etc/c.yaml:3: schedules[0].cron: is missing",
		"schedules:\n  - cron: '@daily'\n":                                                "schedules[0].name: is missing",
		"schedules:\n  - {name: A b, cron: '@daily'}\n":                                   "does not serve as a name",
		"schedules:\n  - {name: ../x, cron: '@daily'}\n":                                  "does not serve as a name",
		"schedules:\n  - {name: a, cron: '@daily', when: x}\n":                            "schedules[0].when: is not a key of a plan",
		"schedules:\n  - name: a\n    cron: '@daily'\n    timezone: Europe/Berln\n":       "/etc/c.yaml:5: schedules[0].timezone: \"Europe/Berln\" is no time zone",
		"schedules:\n  - {name: a, cron: '@daily', timezone: Local}\n":                    "it names no zone",
		"schedules:\n  - {name: a, cron: '@daily', job: prune}\n":                         "\"prune\" is not one of backup, verify; it takes backup or verify",
		"schedules:\n  - {name: a, cron: '@daily', type: differential}\n":                 "is not one of full, incremental",
		"schedules:\n  - {name: a, cron: '@daily', job: verify, type: full}\n":            "a verification has no type",
		"schedules:\n  - {name: a, cron: '@daily', overlap: wait}\n":                      "is not one of skip, queue",
		"schedules:\n  - {name: a, cron: '@daily', catch_up: 10s}\n":                      "10s is not between 1m and 720h",
		"schedules:\n  - {name: a, cron: '@daily', catch_up: never}\n":                    "is not a duration",
		"schedules:\n  - {name: a, cron: [1], job: backup}\n":                             "schedules[0].cron: has no plain value",
		"schedules:\n  - {name: a, cron: }\n":                                             "schedules[0].cron: has no plain value",
		"schedules:\n  - {name: alation, cron: '@daily'}\n":                               "the name is kept for the plan of alation.backup.scheduled_minute",
		"schedules:\n  - name: a\n    cron: '@daily'\n  - name: a\n    cron: '@hourly'\n": "/etc/c.yaml:5: schedules[1].name: the plan a stands in line 3 already",
		"schedules:\n  - name: a\n    name: b\n    cron: '@daily'\n":                      "stands twice",
		"schedules:\n  - {name: a, cron: '@daily'}\nschedules: []\n":                      "stands twice",
		"schedules:\n  - name: a\n    cron: 5\n":                                          "has 1 fields, not five",
		"schedule.catch_up: 30s\n":                                                        "/etc/c.yaml:2: schedule.catch_up: 30s is not between 1m and 720h",
		"schedule.overlap: both\n":                                                        "is not one of skip, queue",
		"alation.backup.scheduled_minute: 60\n":                                           "60 is not between 0 and 59",
		"alation.backup.scheduled_hour: 24\n":                                             "24 is not between 0 and 23",
		"alation.backup.scheduled_day: mon, tue\n":                                        "\" tue\" is not one of mon",
		"alation.backup.scheduled_day: monday\n":                                          "\"monday\" is not one of mon",
		"alation.backup.scheduled_day: [mon, tue]\n":                                      "a list is given; write the days with commas",
		"schedules.name: a\n":                                                             "schedules.name: is not a key",
		"schedules:\n  - &a {name: a, cron: *a}\n":                                        "has no plain value",
		"schedules: &s\n  - *s\n":                                                         "is no plan",
	} {
		_, err := Parse("/etc/c.yaml", []byte("instance: c\n"+text), nothing)
		require.ErrorContains(t, err, want, text)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.NotEmpty(t, e.Remedy, text)
	}
	_, err := Parse("/etc/c.yaml", []byte("instance: c\n"), env(map[string]string{"CATALOG_BACKUP_SCHEDULES": "x"}))
	require.ErrorContains(t, err, "CATALOG_BACKUP_SCHEDULES: schedules: plans are given in the file only")
}
