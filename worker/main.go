// Command worker takes backup runs out of the queue and makes the sets; its other
// verbs verify, restore and list sets and need no Redis.
package main

import (
	"catalog-backup/shared/exit"
	"catalog-backup/worker/keeper"

	"github.com/spf13/cobra"
)

func main() {
	keeper.Hook()
	exit.Main(command())
}

// globals are the flags of every verb.
type globals struct {
	config string
	json   bool
}

func command() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:     "worker",
		Short:   "Makes backup sets of a data-catalog server, verifies and restores them",
		Version: exit.Version,
		Args:    exit.Args(cobra.NoArgs),
	}
	root.PersistentFlags().StringVar(&g.config, "config", "", "the configuration (default $CATALOG_BACKUP_CONFIG, else /etc/catalog-backup/config.yaml)")
	root.PersistentFlags().BoolVar(&g.json, "json", false, "print one JSON value on stdout and nothing else there")
	root.AddCommand(runCommand(g), verifyCommand(g), restoreCommand(g), listCommand(g), healthCommand(g))
	return root
}
