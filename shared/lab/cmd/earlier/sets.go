package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"catalog-backup/shared/lab/earlier"
)

// withBus makes a set of a database, a bus and files, and the Redis of its node: a run
// that a plan opened and that succeeded, one that failed, and one that is open since its
// worker was killed.
func withBus(s *site) error {
	ctx := context.Background()
	if err := errors.Join(s.fill(), s.database(), s.events(ctx)); err != nil {
		return err
	}
	plans := "eventbus: {brokers: [" + strings.Join(s.bus.Brokers, ", ") + "], patience: 4s}\nschedules:\n  - {name: minutely, cron: \"* * * * *\"}\n  - {name: proof, cron: \"0 4 * * *\", job: verify}\n"
	if err := errors.Join(s.configure(plans), s.start()); err != nil {
		return err
	}
	var err error
	if s.facts.Bus, err = earlier.ReadBus(ctx, s.bus); err != nil {
		return err
	}
	if err := s.tick(); err != nil {
		return err
	}
	if err := s.backup(); err != nil {
		return err
	}
	return s.runs(ctx)
}

// tick lets the scheduler open a run, which succeeds.
func (s *site) tick() error {
	cmd := exec.Command(filepath.Join(s.programs, "producer"), "schedule", "run", "--config", s.config())
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	if err := cmd.Start(); err != nil {
		return err
	}
	err := eventually("a plan has made a set", 2*time.Minute, func() bool {
		sets, _ := filepath.Glob(filepath.Join(s.root, "backup", "*_alation_backup.json"))
		return len(sets) > 0
	})
	return errors.Join(err, cmd.Process.Signal(os.Interrupt), cmd.Wait())
}

// runs makes the failed run and the open one, and keeps Redis and the open run's staging
// as the killed worker left them.
func (s *site) runs(ctx context.Context) error {
	if err := s.pg.Stop(); err != nil {
		return err
	}
	v, err := s.producer("backup-all", "--full", "--wait")
	if err != nil {
		return err
	}
	if v["state"] != "failed" {
		return fmt.Errorf("the run without a database: %v", v)
	}
	if err := s.pg.Start(); err != nil {
		return err
	}
	c := s.redis.Client()
	defer c.Close()
	for tries := range 20 {
		id, err := s.cut(ctx, c)
		if err != nil {
			return err
		}
		if id == "" {
			continue // it was over before the kill; see to the next one
		}
		s.log.Write(fmt.Appendf(nil, "run %s is open after %d tries\n", id, tries+1))
		if err := earlier.SaveRedis(ctx, c, filepath.Join(s.out, "redis.json")); err != nil {
			return err
		}
		return s.keepStaging()
	}
	return errors.New("no kill met the archive stage")
}

// cut starts a run and kills the worker in its archive stage; "" if that came too late.
func (s *site) cut(ctx context.Context, c *redis.Client) (string, error) {
	v, err := s.producer("backup-all", "--full")
	if err != nil {
		return "", err
	}
	id, _ := v["run"].(string)
	key := "catalog-backup:run:" + id
	var h map[string]string
	err = eventually("stage archive", time.Minute, func() bool {
		h, err = c.HGetAll(ctx, key).Result()
		return err == nil && (h["stage"] == "archive" && h["claimed"] == h["generation"] || h["ended"] != "")
	})
	if err := errors.Join(err, s.kill()); err != nil {
		return "", err
	}
	if h, err = c.HGetAll(ctx, key).Result(); err != nil {
		return "", err
	}
	if h["state"] != "running" || h["committed"] == "1" {
		return "", s.start()
	}
	return id, nil
}

// keepStaging packs what the open run has on disk, without the sets.
func (s *site) keepStaging() error {
	cmd := exec.Command("tar", "-czf", filepath.Join(s.out, "staging.tar.gz"), "--exclude=./backup/[0-9]*", "--sort=name", "--numeric-owner", "-C", s.root, "./backup", "./tmp")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("pack the staging: %w: %s", err, out)
	}
	return nil
}

// withTablespace makes a set of a database with a tablespace and configuration outside of
// the data directory, and files.
func withTablespace(s *site) error {
	extra := filepath.Join(s.root, "etc", "extra.conf")
	err := errors.Join(os.Mkdir(filepath.Dir(extra), 0o755), os.WriteFile(extra, []byte("work_mem = '5MB'\nmaintenance_work_mem = '32MB'\n"), 0o644), s.fill())
	if err != nil {
		return err
	}
	if err := errors.Join(s.database("include = '"+extra+"'", "archive_mode = on", "archive_command = 'false'")); err != nil {
		return err
	}
	if err := errors.Join(s.spaced(), s.configure(""), s.start()); err != nil {
		return err
	}
	return s.backup()
}

// filesOnly makes a set without a database, which the configuration demands and the
// format does not.
func filesOnly(s *site) error {
	if err := errors.Join(s.fill(), s.keepFacts()); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(s.programs, "filesonly"), filepath.Join(s.root, "app"), filepath.Join(s.root, "backup"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return s.keepSet(strings.TrimSpace(string(out)))
}
