package main

import (
	"catalog-backup/shared/config"
	"catalog-backup/shared/health"

	"github.com/spf13/cobra"
)

// health asks the services that this program hosts.
func (a *app) health(name string) *cobra.Command {
	return health.Command(name, a.out, func() bool { return a.json }, func() ([]health.Place, error) {
		c, err := config.Load(config.Path(a.configPath, a.getenv), a.getenv)
		if err != nil {
			return nil, err
		}
		return []health.Place{{Process: "schedule", Key: "schedule.listen", Address: c.Listen.Schedule},
			{Process: "dashboard", Key: "dashboard.listen", Address: c.Dashboard.Listen[0], Encrypted: c.Dashboard.CertFile != ""}}, nil
	}, "schedule", "dashboard")
}
