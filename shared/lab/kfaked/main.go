// kfaked plays a Kafka broker, or several, in a process of its own: kfaked CONFIG.
// CONFIG is a lab.KfakedConfig as JSON. Its data directory makes it survive kill -9.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/twmb/franz-go/pkg/kfake"

	"catalog-backup/shared/lab"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kfaked:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: kfaked CONFIG")
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var cfg lab.KfakedConfig
	if err := json.Unmarshal(text, &cfg); err != nil {
		return fmt.Errorf("read %s: %w", args[0], err)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	c, err := kfake.NewCluster(options(cfg)...)
	if err != nil {
		return err
	}
	<-end
	c.Close()
	return nil
}

func options(cfg lab.KfakedConfig) []kfake.Opt {
	opts := []kfake.Opt{
		kfake.Ports(cfg.Ports...),
		kfake.NumBrokers(len(cfg.Ports)),
		kfake.ClusterID("catalog-backup-lab"),
		kfake.DataDir(cfg.DataDir),
		kfake.BrokerConfigs(cfg.Config),
	}
	if cfg.Sync {
		opts = append(opts, kfake.SyncWrites())
	}
	if cfg.AutoTopics {
		opts = append(opts, kfake.AllowAutoTopicCreation())
	}
	if cfg.ACLs {
		opts = append(opts, kfake.EnableACLs())
	}
	if len(cfg.Users) > 0 {
		opts = append(opts, kfake.EnableSASL())
	}
	for _, u := range cfg.Users {
		if u.Super {
			opts = append(opts, kfake.Superuser(u.Mechanism, u.Name, u.Password))
			continue
		}
		opts = append(opts, kfake.User(u.Mechanism, u.Name, u.Password, u.ACLs...))
	}
	return opts
}
