package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"
	"catalog-backup/shared/set"
	"catalog-backup/worker/restore"

	"github.com/spf13/cobra"
)

func verifyCommand(g *globals) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "verify SET",
		Short: "Read every byte of a set and hold it against its manifest",
		Long: `Read every byte of a set's archives, once, and hold it against the manifest: sizes,
SHA-256, the structure of the archives, every file, every file and slice of the
PostgreSQL backup, its WAL, every batch of records. Nothing is extracted and no
other program is needed.

SET is the path of a manifest or of an archive, or a set id with --dir. An archive
whose manifest is not beside it is held against the copy of the manifest that it
carries, which takes a second reading; what could not be checked is said.

What was found is kept beside the set as its proof. Exit code 8 says damage.`,
		Example: "  worker verify /data2/backup/202109232027_10-0-0-147420_alation_backup.json\n" +
			"  worker verify 202109232027_10-0-0-147420 --dir /data2/backup --json",
		Args: exit.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return verify(ctx, g, args[0], dir)
		},
		ValidArgsFunction: completeSets(g, &dir),
	}
	addDir(cmd, &dir)
	return cmd
}

func addDir(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "", "the directory of the sets (default alation.backup.data_dump_dir of the configuration)")
	_ = cmd.MarkFlagDirname("dir")
}

var errInterrupted = errors.New("interrupted")

// interruptible ends with a signal, or when nobody reads any more what is printed; a
// second SIGINT or SIGTERM ends the program at once.
func interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, append(exit.Ends(), syscall.SIGPIPE)...)
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(fmt.Errorf("%w (%v)", errInterrupted, s))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(signals); cancel(nil) }
}

// openSet finds a set and gives errors their exit codes.
func openSet(ctx context.Context, g *globals, what, dir string) (*restore.Set, error) {
	if _, err := set.ParseID(what); err == nil && dir == "" {
		if dir, err = dumpDir(g); err != nil {
			return nil, exit.Withf(exit.Usage, "open set %s: say where it lies by --dir DIR (there is no configuration to take the dump directory from: %w)", what, err)
		}
	}
	return restore.Open(ctx, what, dir)
}

// dumpDir is the configured dump directory.
func dumpDir(g *globals) (string, error) {
	c, err := config.Load(config.Path(g.config, os.Getenv), os.Getenv)
	if err != nil {
		return "", err
	}
	return c.Backup.DumpDir, nil
}

// coded gives an error of the offline verbs its exit code.
func coded(err error) error {
	var damaged *restore.DamagedError
	var given *exit.Error
	switch {
	case err == nil, errors.As(err, &given):
		return err
	case errors.Is(err, errInterrupted):
		return exit.With(exit.Cancelled, err)
	case errors.As(err, &damaged):
		return exit.With(exit.Damage, err)
	case errors.Is(err, restore.ErrNotFound):
		return exit.With(exit.NotFound, err)
	case errors.Is(err, restore.ErrUsage):
		return exit.With(exit.Usage, err)
	}
	return err
}

func verify(ctx context.Context, g *globals, what, dir string) error {
	s, err := openSet(ctx, g, what, dir)
	var damaged *restore.DamagedError
	if errors.As(err, &damaged) && g.json {
		report := restore.Report{Set: damaged.Set, Damage: damaged.Damage, DamageTotal: damaged.Total, Notes: []string{}}
		if err := exit.JSON(os.Stdout, report); err != nil {
			return err
		}
	}
	if err != nil {
		return coded(err)
	}
	show := newProgress(os.Stderr, g.json)
	report, err := restore.Verify(ctx, s, restore.VerifyOptions{Progress: show.phase("verify")})
	show.end()
	if err != nil {
		return coded(err)
	}
	s.Prove(report, time.Now())
	if g.json {
		if err := exit.JSON(os.Stdout, report); err != nil {
			return err
		}
	} else {
		printReport(os.Stdout, report)
	}
	if !report.Good {
		return exit.Silent(exit.Damage)
	}
	return nil
}

func printReport(w io.Writer, r *restore.Report) {
	printDamage(w, r.Damage, r.DamageTotal)
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", exit.Printable(n))
	}
	verdict := "good"
	if !r.Good {
		verdict = fmt.Sprintf("DAMAGED, %d findings", r.DamageTotal)
	}
	fmt.Fprintf(w, "%s: %s (%s read)\n", exit.Printable(r.Set), verdict, exit.Size(r.Bytes))
}

func printDamage(w io.Writer, list []restore.Damage, total int) {
	for _, d := range list {
		fmt.Fprintf(w, "damage: %s\n", exit.Printable(d.String()))
	}
	if more := total - len(list); more > 0 {
		fmt.Fprintf(w, "damage: and %d more\n", more)
	}
}
