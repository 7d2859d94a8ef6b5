package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/worker/backup"
	"catalog-backup/worker/eventbus"
	"catalog-backup/worker/restore"

	"github.com/spf13/cobra"
)

// restoreFlags are the flags of `worker restore`.
type restoreFlags struct {
	dir, target, bus string
	only             []string
	finalRetention   bool
	live             bool
}

func restoreCommand(g *globals) *cobra.Command {
	f := &restoreFlags{}
	cmd := &cobra.Command{
		Use:   "restore SET --target DIR",
		Short: "Restore a set into a directory, and its events into a bus",
		Long: `Restore a set into an empty directory. The set is verified first, whole, and nothing
is written if anything is wrong with the parts that are restored, so every byte is read
twice. What is wrong elsewhere is a warning.

  DIR/postgres/data      a data directory that starts by itself; the command is printed
  DIR/postgres/config    configuration that lay outside of it
  DIR/files/…            the application's files by their absolute paths
  DIR/eventbus/topics/…  the records of the Event Bus as Kafka log segments
  DIR/set.json           the manifest: topics, consumer positions, access rules and all else

The restored PostgreSQL is quiet: it is reached by its own socket only, archives nothing,
and runs no worker of an extension or a subscription, until you take the marked lines out
of its configuration. With --live it acts for the original as soon as it starts.

SET is the path of a manifest or of an archive, or a set id with --dir. While DIR holds
.restore, the restore is unfinished.

--bus loads topics, records, consumer positions, access rules and settings into a bus
that has none of the topics. It takes brokers (HOST:PORT,…) or a YAML file with the
eventbus: keys of the configuration (brokers, tls, sasl). The records stay for ever
unless --final-retention is given: Kafka deletes at once what is older than a topic's retention.`,
		Example: "  worker restore 202109232027_10-0-0-147420 --dir /data2/backup --target /data3/restored\n" +
			"  worker restore X_alation_backup.json --target /data3/bus --only eventbus --bus kafka1:9092,kafka2:9092",
		Args: exit.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("only") && len(f.only) == 0 {
				return exit.Withf(exit.Usage, "--only names no part; it takes %s", strings.Join(restore.AllParts, ", "))
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return restoreSet(ctx, g, args[0], f)
		},
		ValidArgsFunction: completeSets(g, &f.dir),
	}
	addDir(cmd, &f.dir)
	cmd.Flags().StringVar(&f.target, "target", "", "the directory to restore into: empty, or not there yet")
	cmd.Flags().StringSliceVar(&f.only, "only", nil, "parts to restore: "+strings.Join(restore.AllParts, ", ")+" (default all that the set has)")
	cmd.Flags().StringVar(&f.bus, "bus", "", "load the records into this bus: HOST:PORT,… or a YAML file")
	cmd.Flags().BoolVar(&f.live, "live", false, "leave PostgreSQL's workers, libraries, ssl, log-in and addresses as they were: only where the original is gone for good")
	cmd.Flags().BoolVar(&f.finalRetention, "final-retention", false, "give the loaded topics their own retention at once")
	_ = cmd.MarkFlagDirname("target")
	_ = cmd.RegisterFlagCompletionFunc("only", cobra.FixedCompletions(restore.AllParts, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// restoreValue is what `restore --json` prints.
type restoreValue struct {
	*restore.Result
	Damage []restore.Damage `json:"damage"`
	Error  *string          `json:"error"`
}

func restoreSet(ctx context.Context, g *globals, what string, f *restoreFlags) error {
	if f.target == "" {
		return exit.Withf(exit.Usage, "say where to restore to by --target DIR; see worker restore --help")
	}
	bus, err := busOptions(f.bus)
	if err != nil {
		return err
	}
	show := newProgress(os.Stderr, g.json)
	result := &restore.Result{Target: f.target, Parts: []string{}, Notes: []string{}, Warnings: []string{}, Next: []string{}}
	s, err := openSet(ctx, g, what, f.dir)
	if err == nil {
		result, err = restore.Restore(ctx, s, restore.Options{Target: f.target, Only: f.only, Bus: bus, FinalRetention: f.finalRetention, Live: f.live,
			Runner: backup.NewRunner(""), Phase: show.phase, Now: time.Now})
	}
	show.end()
	if perr := g.printRestored(result, err); perr != nil {
		return perr
	}
	if err != nil {
		return coded(err)
	}
	if len(result.Warnings) > 0 {
		return exit.Silent(exit.Warnings)
	}
	return nil
}

// printRestored prints what came of a restore; the error itself is printed by exit.
func (g *globals) printRestored(r *restore.Result, err error) error {
	var damaged *restore.DamagedError
	errors.As(err, &damaged)
	switch {
	case g.json:
		v := restoreValue{Result: r, Damage: []restore.Damage{}}
		if err != nil {
			text := err.Error()
			v.Error = &text
		}
		if damaged != nil {
			v.Set, v.Damage = damaged.Set, damaged.Damage
		}
		return exit.JSON(os.Stdout, v)
	case damaged != nil:
		printDamage(os.Stderr, damaged.Damage, damaged.Total)
	case err == nil:
		printResult(os.Stdout, r)
	}
	return nil
}

func printResult(w io.Writer, r *restore.Result) {
	for _, x := range r.Warnings {
		fmt.Fprintf(w, "warning: %s\n", exit.Printable(x))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", exit.Printable(n))
	}
	fmt.Fprintf(w, "%s: restored %s into %s (verified in %.1f s, restored in %.1f s)\n",
		exit.Printable(r.Set), strings.Join(r.Parts, ", "), exit.Printable(r.Target), r.VerifySeconds, r.RestoreSeconds)
	if l := r.EventBus; l != nil {
		fmt.Fprintf(w, "loaded into the bus: %d topics, %d records, %d groups\n", l.Topics, l.Records, l.Groups)
	}
	if len(r.Next) > 0 {
		fmt.Fprintln(w, "what to do next:")
	}
	for _, n := range r.Next {
		fmt.Fprintf(w, "  - %s\n", exit.Printable(n))
	}
}

// busOptions understands --bus. A file's keys are those of the configuration; the
// environment, which speaks of the bus that is backed up, is left out of it.
func busOptions(given string) (*eventbus.Options, error) {
	if given == "" {
		return nil, nil
	}
	if st, err := os.Stat(given); err != nil || !st.Mode().IsRegular() {
		o := &eventbus.Options{ClientID: "catalog-backup"}
		for _, b := range strings.Split(given, ",") {
			o.Brokers = append(o.Brokers, strings.TrimSpace(b))
		}
		if err := o.Validate(); err != nil {
			return nil, exit.Withf(exit.Usage, "--bus %q: it is neither a file nor HOST:PORT,…: %w", given, err)
		}
		return o, nil
	}
	c, err := config.Load(given, func(name string) string {
		return map[string]string{config.EnvPrefix + "INSTANCE": "restore", config.EnvPrefix + "REDIS": "embedded"}[name]
	})
	if err != nil {
		return nil, err
	}
	o := eventBusOptions(c.EventBus)
	if err := o.Validate(); err != nil {
		return nil, exit.Withf(exit.Usage, "--bus %s: %w", given, err)
	}
	return &o, nil
}

func eventBusOptions(c config.EventBus) eventbus.Options {
	o := eventbus.Options{Brokers: c.Brokers, ClientID: "catalog-backup", Parallel: c.Parallel, Budget: c.Budget}
	if t := c.TLS; t.Enabled {
		o.TLS = &eventbus.TLS{CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile, ServerName: t.ServerName, InsecureSkipVerify: t.Insecure}
	}
	if c.SASL.Mechanism != "" {
		o.SASL = &eventbus.SASL{Mechanism: c.SASL.Mechanism, Username: c.SASL.Username, Password: c.SASL.Password}
	}
	return o
}
