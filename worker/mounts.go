package main

import (
	"catalog-backup/shared/config"
	"catalog-backup/worker/dump"

	"github.com/sirupsen/logrus"
)

// warnOfMounts says which directories are on a network file system whose locks stay on
// this host. That is right as long as all workers of the node run here.
func warnOfMounts(c *config.Config, log logrus.FieldLogger) {
	dirs := [][2]string{{"alation.backup.data_dump_dir", c.Backup.DumpDir}, {"alation.backup.data_temp_dir", c.Backup.TempDir}}
	if c.Redis.Embedded {
		dirs = append(dirs, [2]string{"state_dir", c.StateDir})
	}
	for _, d := range dirs {
		m, err := dump.MountOf(d[1])
		if err != nil {
			log.WithError(err).Warn("whether locks hold between hosts is not known")
			continue
		}
		if m.HostLocal() != "" {
			log.Warnf("%s (%s) is on %s: locks there hold on this host only, so all workers of node %s must run on it; mount it without that option to use it from several", d[1], d[0], m, c.Node)
		}
	}
}
