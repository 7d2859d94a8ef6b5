// Package exit holds what the command lines of the producer and the worker share:
// exit codes, how an error becomes one, and how a JSON value is printed.
package exit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"catalog-backup/shared/config"

	"github.com/spf13/cobra"
)

// Exit codes; others script against them. See docs/exit-codes.md.
const (
	Good        = 0
	Other       = 1
	Usage       = 2 // usage or configuration
	RunFailed   = 3
	Cancelled   = 4
	Busy        = 5 // another run is active
	Unreachable = 6 // Redis
	NotFound    = 7
	Damage      = 8
	Warnings    = 10 // good with warnings
)

// Version of both programs, stamped by the linker: -X catalog-backup/shared/exit.Version=…
var Version = "dev"

// Error carries an exit code. A nil Err prints nothing: what there was to say has been said.
type Error struct {
	Code int
	Err  error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// With gives err an exit code.
func With(code int, err error) error { return &Error{Code: code, Err: err} }

// Withf is With(code, fmt.Errorf(…)).
func Withf(code int, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}

// Silent is an exit code with nothing more to say.
func Silent(code int) error {
	if code == Good {
		return nil
	}
	return &Error{Code: code}
}

// Code is the exit code of err.
func Code(err error) int {
	var e *Error
	var c *config.Error
	switch {
	case err == nil:
		return Good
	case errors.As(err, &e):
		return e.Code
	case errors.As(err, &c):
		return Usage
	}
	return Other
}

// Main runs the command line and ends the process with its exit code. The error
// is printed once, here.
func Main(root *cobra.Command) {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return Withf(Usage, "%w; see %s --help", err, cmd.CommandPath())
	})
	root.Version = Version
	wantVerb(root)
	cmd, err := root.ExecuteC()
	if err != nil {
		var e *Error
		if !errors.As(err, &e) || e.Err != nil {
			fmt.Fprintf(os.Stderr, "%s: %s\n", cmd.Root().Name(), err)
		}
	}
	os.Exit(Code(err))
}

// wantVerb makes a command that only groups verbs refuse to do nothing.
func wantVerb(cmd *cobra.Command) {
	if cmd.Run == nil && cmd.RunE == nil {
		cmd.Args, cmd.RunE = cobra.ArbitraryArgs, noVerb
	}
	for _, c := range cmd.Commands() {
		wantVerb(c)
	}
}

// noVerb runs when the command line names no verb that there is. cobra by itself
// would not end such a call as a usage error.
func noVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return Withf(Usage, "name a verb; see %s --help", cmd.CommandPath())
	}
	cmd.SuggestionsMinimumDistance = 2
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "? "
	}
	return Withf(Usage, "%q is not a verb; %ssee %s --help", args[0], hint, cmd.CommandPath())
}

// Args turns cobra's complaint about positional arguments into a usage error.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return Withf(Usage, "%w; see %s --help", err, cmd.CommandPath())
		}
		return nil
	}
}

// JSON prints one value and a newline.
func JSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
