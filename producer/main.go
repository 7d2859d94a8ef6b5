// Command producer is the thin command line of catalog-backup: it turns flags
// into a run, hands it to the workers through Redis, and shows what they say of
// it. It never touches data. One file per verb.
package main

import (
	"io"
	"os"
	"path/filepath"
	"time"

	"catalog-backup/shared/exit"

	"github.com/spf13/cobra"
)

// actionName is the catalog server's own program, whose `backup_all` this one
// stands in for when it is called by that name.
const actionName = "alation_action"

// app is what every verb works with.
type app struct {
	configPath string
	json       bool

	out, err io.Writer
	getenv   func(string) string
	now      func() time.Time
}

func main() {
	a := &app{out: os.Stdout, err: os.Stderr, getenv: os.Getenv, now: time.Now}
	exit.Main(newRoot(a, os.Args[0]))
}

// newRoot builds the command line. calledAs is argv[0].
func newRoot(a *app, calledAs string) *cobra.Command {
	name := "producer"
	if filepath.Base(calledAs) == actionName {
		name = actionName
	}
	root := &cobra.Command{
		Use:   name,
		Short: "Ask for backups of a catalog server and see how they go",
		Long: `Ask for backups of a catalog server and see how they go.

The work is done by workers ("worker run"); this program hands it to them through
Redis. Exit codes: 0 good, 1 other error, 2 usage or configuration, 3 the run
failed, 4 cancelled, 5 another run is active, 6 Redis unreachable, 7 not found,
8 damage found, 10 good with warnings.`,
		Example: "  " + name + " backup-all --wait\n  " + name + " status\n  " + name + " list",
	}
	root.PersistentFlags().StringVar(&a.configPath, "config", "", "configuration file (default: $CATALOG_BACKUP_CONFIG, else /etc/catalog-backup/config.yaml)")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print one JSON value on stdout and nothing else there")
	root.AddCommand(a.backupAll(name), a.status(name), a.watch(name), a.list(name), a.show(name), a.cancel(name), a.abandon(name), a.forget(name), a.schedule(name), a.health(name), a.dashboard(name))
	return root
}
