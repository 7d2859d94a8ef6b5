// site fills the servers of the compose example with data, and describes what is in
// them, so that a restore can be compared with its source:
//
//	site fill       rows, events and files, once
//	site describe   one JSON value: description by name
//
// SITE_DSN, SITE_BROKERS (HOST:PORT,…) and SITE_FILES (a directory) say where; describe
// leaves out what is not set. SITE_TABLESPACE, for fill, is a directory of PostgreSQL's user.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"catalog-backup/shared/lab/sample"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// patience is how long servers that have just been started may take to answer.
const patience = 2 * time.Minute

var errUsage = errors.New("wrong arguments")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "site:", err)
	if errors.Is(err, errUsage) {
		fmt.Fprintln(os.Stderr, "usage: site fill | site describe   (environment: SITE_DSN, SITE_BROKERS, SITE_FILES, SITE_TABLESPACE)")
		os.Exit(2)
	}
	os.Exit(1)
}

func run(ctx context.Context, args []string) error {
	s := site{dsn: os.Getenv("SITE_DSN"), files: os.Getenv("SITE_FILES"), tablespace: os.Getenv("SITE_TABLESPACE")}
	if b := os.Getenv("SITE_BROKERS"); b != "" {
		s.brokers = []kgo.Opt{kgo.SeedBrokers(strings.Split(b, ",")...)}
	}
	switch {
	case len(args) == 1 && args[0] == "fill":
		return s.fill(ctx)
	case len(args) == 1 && args[0] == "describe":
		return s.describe(ctx)
	}
	return errUsage
}

// site is where the data is; an empty field is a part that there is not.
type site struct {
	dsn        string
	brokers    []kgo.Opt
	files      string
	tablespace string
}

// fill makes rows, events and files, in this order and only once: files that are there
// say that all is there.
func (s site) fill(ctx context.Context) error {
	switch _, err := os.Lstat(s.files); {
	case err == nil:
		fmt.Println("the example's data is there already")
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := os.MkdirAll(s.tablespace, 0o700); err != nil {
		return err
	}
	if err := sample.Fill(ctx, s.dsn, s.tablespace); err != nil {
		return halfFilled(err)
	}
	fmt.Println("rows: filled")
	if err := s.fillBus(ctx); err != nil {
		return halfFilled(err)
	}
	fmt.Println("events: filled")
	part := s.files + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := sample.MakeTree(part); err != nil {
		return halfFilled(err)
	}
	if err := os.Rename(part, s.files); err != nil {
		return err
	}
	fmt.Println("files: filled")
	return nil
}

func halfFilled(err error) error {
	return fmt.Errorf("%w; if an earlier filling was interrupted, begin anew with empty volumes: docker-compose down -v", err)
}

func (s site) fillBus(ctx context.Context) error {
	c, err := kgo.NewClient(s.brokers...)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := awaitBus(ctx, c); err != nil {
		return err
	}
	return sample.FillBus(ctx, s.brokers...)
}

// awaitBus returns when the broker answers: its port is open earlier.
func awaitBus(ctx context.Context, c *kgo.Client) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, err := kadm.NewClient(c).ListTopics(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("reach the brokers: %w", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// describe prints what is in the parts that there are.
func (s site) describe(ctx context.Context) error {
	all := map[string]string{}
	put := func(part string, found map[string]string) {
		for name, is := range found {
			all[part+": "+name] = is
		}
	}
	if s.dsn != "" {
		rows, _, err := sample.Rows(ctx, s.dsn)
		if err != nil {
			return fmt.Errorf("describe the rows: %w", err)
		}
		put("rows", rows)
	}
	if s.brokers != nil {
		bus, err := sample.ReadBus(ctx, nil, s.brokers...)
		if err != nil {
			return fmt.Errorf("describe the events: %w", err)
		}
		put("records", bus.Digests)
		put("next record", bus.Next)
		put("settings", bus.Configs)
		put("access rules", bus.Rules)
	}
	if s.files != "" {
		files, _, err := sample.Tree(filepath.Clean(s.files), func(string) bool { return false })
		if err != nil {
			return fmt.Errorf("describe the files: %w", err)
		}
		put("files", files)
	}
	return json.NewEncoder(os.Stdout).Encode(all)
}
