package exit

import (
	"os"
	"os/signal"
	"syscall"
)

// Ends are the signals that end a program in good order: SIGTERM, SIGINT and SIGHUP.
// One that was started with SIGHUP ignored, as nohup does, goes on ignoring it. From
// here on SIGHUP never kills: a terminal that closes sends it more than once.
func Ends() []os.Signal {
	all := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	if signal.Ignored(syscall.SIGHUP) {
		return all
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	return append(all, syscall.SIGHUP)
}

// OutliveReader makes a write on stdout or stderr an error where nobody reads the pipe
// any more; Go's runtime would kill the program (os/signal, SIGPIPE). It is for
// services, whose log may go to a program that ends before them. Notify, and not
// Ignore, which the tools that we start would inherit.
func OutliveReader() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }
