package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"catalog-backup/shared/config"
	"catalog-backup/shared/exit"

	"github.com/spf13/cobra"
)

// askLimit is how long an answer may take: longer than the slowest check.
const askLimit = 8 * time.Second

// Answer is what a process says of its health. Its JSON is the one of the verb health.
type Answer struct {
	Address string   `json:"address"`
	Asked   string   `json:"asked"` // live or ready
	Healthy bool     `json:"healthy"`
	Checks  []string `json:"checks"` // a line each
}

// Ask asks the process at address, HOST:PORT as it listens there, whether it is
// ready, or else whether it lives. encrypted is for one that speaks TLS; whose
// certificate it has is not looked at, since nothing secret is said.
func Ask(ctx context.Context, address string, encrypted, ready bool) (Answer, error) {
	a := Answer{Address: address, Asked: "live", Checks: []string{}}
	path, scheme := LivePath, "http"
	if ready {
		a.Asked, path = "ready", ReadyPath
	}
	if encrypted {
		scheme = "https"
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+reachable(address)+path, nil)
	if err != nil {
		return a, fmt.Errorf("ask %s: %w", address, err)
	}
	client := http.Client{
		Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(q)
	if err != nil {
		return a, fmt.Errorf("ask %s: %s; is the process running?", address, noAnswer(ctx, err))
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return a, fmt.Errorf("ask %s: %s; is the process running?", address, noAnswer(ctx, err))
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		return a, fmt.Errorf("ask %s: it answers %s; that is no process of catalog-backup", address, resp.Status)
	}
	a.Healthy = resp.StatusCode == http.StatusOK
	for line := range strings.Lines(string(text)) {
		a.Checks = append(a.Checks, strings.TrimRight(line, "\n"))
	}
	return a, nil
}

// noAnswer is the reason without the URL, which net/http repeats.
func noAnswer(ctx context.Context, err error) string {
	if ctx.Err() == context.DeadlineExceeded {
		return fmt.Sprintf("no answer within %s", askLimit)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// reachable turns an address to listen at into one to connect to: a process that
// listens everywhere is asked on this machine.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if host == "" {
		host = "127.0.0.1"
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}

// Place is where a process of ours listens, by the configuration.
type Place struct {
	Process   string // the word for it on the command line
	Key       string // of the address
	Address   string // "" is nowhere
	Encrypted bool
}

// Command is the verb `health` of a program. places lists what can be asked; the
// first one is asked where the command line names none.
func Command(program string, out io.Writer, asJSON func() bool, places func() ([]Place, error), names ...string) *cobra.Command {
	var ready bool
	use, args := "health", cobra.NoArgs
	if len(names) > 1 {
		use, args = "health ["+strings.Join(names, "|")+"]", cobra.MaximumNArgs(1)
	}
	cmd := &cobra.Command{
		Use:   use,
		Short: "Ask the " + strings.Join(names, " or ") + " of this machine whether it lives, or can work",
		Long: `Ask the ` + strings.Join(names, " or ") + ` of this machine, at the address in the configuration, whether it
lives; with --ready, whether it can do its work now. For containers and scripts
without an HTTP client. Prints a line a check. Exits 0 if all is well, 1 if not or
if there is no answer, 2 if no address is configured.`,
		Example:   "  " + program + " health\n  " + program + " health --ready",
		Args:      exit.Args(args),
		ValidArgs: names,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := places()
			if err != nil {
				return err
			}
			p, err := pick(list, args)
			if err != nil {
				return err
			}
			a, err := Ask(cmd.Context(), p.Address, p.Encrypted, ready)
			if err != nil {
				return err
			}
			return show(out, a, asJSON())
		},
	}
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether it can do its work now")
	return cmd
}

func pick(list []Place, args []string) (Place, error) {
	var known []string
	for _, p := range list {
		known = append(known, p.Process)
		if len(args) > 0 && args[0] != p.Process {
			continue
		}
		if p.Address == "" {
			return p, &config.Error{File: "the configuration", Key: p.Key, Problem: "is not set, so there is nobody to ask", Remedy: "set it to HOST:PORT and start the process again"}
		}
		return p, nil
	}
	return Place{}, exit.Withf(exit.Usage, "there is no process %q to ask; name one of %s", args[0], strings.Join(known, ", "))
}

func show(out io.Writer, a Answer, asJSON bool) error {
	if asJSON {
		if err := exit.JSON(out, a); err != nil {
			return err
		}
	} else {
		for _, line := range a.Checks {
			fmt.Fprintln(out, exit.Printable(line))
		}
	}
	if !a.Healthy {
		return exit.Silent(exit.Other)
	}
	return nil
}
