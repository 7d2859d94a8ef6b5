// lab starts throwaway servers from a shell and leaves them running:
//
//	eval "$(lab start postgres DIR)"; psql "$PG_DSN"; lab stop DIR
//
// The server's keeper is this program in the background; `lab stop` ends both.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"catalog-backup/shared/lab"
)

const usage = `usage:
  lab start postgres|redis|kfake|kafka DIR [flags]   start a server in DIR and print how to reach it, as NAME='value' lines
  lab show DIR                                       print that again; fails when it does not run
  lab stop DIR                                       end it; its data stays in DIR
flags:
  -tcp          postgres, redis: listen on a loopback port too
  -conf LINE    a further line of its configuration (kfake: NAME=VALUE); may be given more than once
  -owner PID    end the server when this process ends
  -version V    kafka: another version than the pinned one
`

// lines collects a flag that may be given more than once.
type lines []string

func (l *lines) String() string     { return strings.Join(*l, "\n") }
func (l *lines) Set(s string) error { *l = append(*l, s); return nil }

// order is what a start asks for.
type order struct {
	kind    string
	dir     string
	tcp     bool
	conf    lines
	owner   int
	version string
}

var errUsage = errors.New("wrong arguments")

func main() {
	err := run(os.Args[1:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "lab:", strings.TrimPrefix(err.Error(), "lab: "))
	if errors.Is(err, errUsage) {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	os.Exit(1)
}

func run(args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	switch args[0] {
	case "start":
		return start(args[1:])
	case "serve": // what start runs in the background
		o, err := parse(args[1:])
		if err != nil {
			return err
		}
		return serve(o)
	case "show":
		return show(args[1])
	case "stop":
		return stop(args[1])
	}
	return errUsage
}

func parse(args []string) (order, error) {
	var o order
	if len(args) < 2 {
		return o, errUsage
	}
	o.kind, o.dir = args[0], args[1]
	f := flag.NewFlagSet("lab start", flag.ContinueOnError)
	f.SetOutput(os.Stderr)
	f.BoolVar(&o.tcp, "tcp", false, "")
	f.Var(&o.conf, "conf", "")
	f.IntVar(&o.owner, "owner", 0, "")
	f.StringVar(&o.version, "version", "", "")
	if err := f.Parse(args[2:]); err != nil || f.NArg() > 0 {
		return o, errUsage
	}
	return o, nil
}

// server is a running one: its process, how to end it gently (its data stays), and
// how to reach it, as shell variables NAME, value, ….
type server struct {
	pid   int
	end   func() error
	reach []string
}

// launch starts the server.
func launch(o order) (*server, error) {
	switch o.kind {
	case "postgres":
		p, err := lab.StartPostgres(lab.PGOptions{Dir: o.dir, TCP: o.tcp, Conf: o.conf})
		if err != nil {
			return nil, err
		}
		return &server{p.PID(), p.Stop, []string{
			"PG_DSN", p.DSN(), "PG_HOST", p.SocketDir, "PG_PORT", fmt.Sprint(p.Port),
			"PG_DATA", p.DataDir, "PG_BIN", p.BinDir, "PG_PID", fmt.Sprint(p.PID()),
		}}, nil
	case "redis":
		r, err := lab.StartRedis(lab.RedisOptions{Dir: o.dir, TCP: o.tcp, Conf: o.conf})
		if err != nil {
			return nil, err
		}
		reach := []string{"REDIS_SOCKET", r.Addr, "REDIS_ADDRESS", r.TCPAddr, "REDIS_PID", fmt.Sprint(r.PID())}
		return &server{r.PID(), r.Shutdown, reach}, nil
	case "kfake":
		config := map[string]string{}
		for _, line := range o.conf {
			name, value, ok := strings.Cut(line, "=")
			if !ok {
				return nil, fmt.Errorf("-conf %s: give NAME=VALUE", line)
			}
			config[name] = value
		}
		b, err := lab.StartKfake(lab.KfakeOptions{Dir: o.dir, Config: config})
		if err != nil {
			return nil, err
		}
		return brokerServer(b), nil
	case "kafka":
		b, err := lab.StartKafka(lab.KafkaOptions{Dir: o.dir, Version: o.version, Extra: o.conf})
		if err != nil {
			return nil, err
		}
		return brokerServer(b), nil
	}
	return nil, fmt.Errorf("no server %q: %w", o.kind, errUsage)
}

func brokerServer(b *lab.Broker) *server {
	return &server{b.PID(), b.Shutdown, []string{
		"KAFKA_BROKERS", strings.Join(b.Brokers, ","), "KAFKA_DATA", b.DataDir, "KAFKA_PID", fmt.Sprint(b.PID()),
	}}
}
