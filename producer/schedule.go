package main

import (
	"os"
	"os/user"

	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/schedule"

	"github.com/spf13/cobra"
)

func (a *app) schedule(name string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schedule",
		Short: "Backups and verifications at set times",
		Long: `Backups and verifications at set times: the plans below "schedules" in the configuration,
and the plan "alation" of the documented parameters alation.backup.scheduled_minute,
_hour and _day. "schedule run" is the service that carries them out.`,
		Example: "  " + name + " schedule list\n  " + name + " schedule explain \"30 2 * * 1-5\" --timezone Europe/Berlin",
	}
	cmd.AddCommand(a.scheduleRun(name), a.scheduleList(name), a.scheduleExplain(name), a.schedulePause(name), a.scheduleResume(name))
	return cmd
}

// plan finds a plan of the configuration.
func plan(c *config.Config, name string) (schedule.Plan, error) {
	p, ok := schedule.Find(schedule.Plans(c), name)
	if !ok {
		return p, exit.Withf(exit.NotFound, "%q is not a plan in %s; see `schedule list` for those there are", name, c.Path)
	}
	return p, nil
}

// completePlan offers the plans of the configuration.
func (a *app) completePlan(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	out := []cobra.Completion{}
	if c, err := config.Load(config.Path(a.configPath, a.getenv), a.getenv); err == nil && len(args) == 0 {
		for _, p := range schedule.Plans(c) {
			out = append(out, cobra.CompletionWithDesc(p.Name, p.Cron+" "+p.Timezone))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// caller names who runs this command, for the record: whom sudo stands in for, else the user.
func (a *app) caller() string {
	name := a.getenv("SUDO_USER")
	if name == "" {
		if u, err := user.Current(); err == nil {
			name = u.Username
		} else {
			name = "unknown"
		}
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}
