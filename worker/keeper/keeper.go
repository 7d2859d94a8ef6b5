// Package keeper runs child processes that never outlive the worker, however it
// dies.
//
// The program starts itself again under a hidden verb. That process, the keeper,
// leads a session of its own and starts the tool in it. A pipe whose write end
// only the worker holds tells the keeper that the worker is gone: it then ends
// every process of the session. The worker in turn ends the session when the
// keeper is killed. The keeper keeps the worker's rights, the tool may run as
// somebody else.
//
// What it reaches: every process of the tool's session, whatever its process
// group. While the keeper lives it reaches, when it is asked to end the tool or
// the worker is gone, also descendants that called setsid. Out of reach are: a
// process that called setsid and outlived its tool (a daemon, such as the server
// that "pg_ctl start" leaves), one that called setsid when the keeper itself is
// killed, and one with more rights than the keeper (set-user-id programs).
//
// A keeper takes no notice of SIGTERM, SIGINT, SIGHUP and SIGQUIT: the worker
// decides. (A systemd unit needs KillMode=mixed, or its tools get a SIGTERM of
// their own before the worker can end them in order.)
package keeper

import (
	"encoding/gob"
	"io"
	"os"
	"syscall"
	"time"
)

// verb is the hidden first argument under which the program is a keeper.
const verb = "__keeper"

// The keeper's descriptors, after the tool's 0, 1 and 2.
const (
	controlFD = 3 // read end: the order, later one byte "end", at last end of file
	statusFD  = 4 // write end: reports
)

// hooked tells that Hook was called. Without it a child would run the whole
// program again, and again.
var hooked bool

// Hook must be the first call of main, and of every TestMain whose package starts
// processes. In a keeper it never returns; otherwise it does nothing.
func Hook() {
	hooked = true
	if len(os.Args) < 2 || os.Args[1] != verb {
		return
	}
	syscall.Exit(keep()) // os.Exit would wait a second under the race detector
}

// order is what the worker sends to its keeper. It goes through the pipe, not
// through arguments or environment: those of the keeper can be read by others.
type order struct {
	Path       string
	Args       []string // without Path
	Env        []string
	Dir        string
	Credential *Credential
	Gentle     time.Duration
	PIDFile    string
	Pipes      []uint64 // inodes of the pipes to the worker among the tool's stdout and stderr
}

// report is what the keeper says, one JSON value a line.
type report struct {
	Started bool   `json:",omitempty"` // PID is the tool's
	PID     int    `json:",omitempty"`
	Failed  string `json:",omitempty"` // the tool could not be started
	Errno   int    `json:",omitempty"` // why, if the kernel said it
	Exited  bool   `json:",omitempty"` // the tool and its session are gone; Code or Signal hold
	Code    int    `json:",omitempty"`
	Signal  int    `json:",omitempty"`
	Ended   bool   `json:",omitempty"` // the keeper ended it
	Stuck   []int  `json:",omitempty"` // processes that SIGKILL did not end
}

// writeOrder and readOrder use gob, not JSON: arguments need not be UTF-8.
func writeOrder(w io.Writer, o order) error { return gob.NewEncoder(w).Encode(o) }

func readOrder(r io.Reader) (o order, err error) { return o, gob.NewDecoder(oneByte{r}).Decode(&o) }

// oneByte keeps gob from reading further than the order: what follows is not for it.
type oneByte struct{ io.Reader }

func (o oneByte) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(o.Reader, b[:])
	return b[0], err
}
