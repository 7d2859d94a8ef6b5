// Package keeper runs child processes that never outlive the worker, however it
// dies. The program starts itself again under a hidden verb; that process, the
// keeper, leads a process group of its own, starts the tool in it, and kills the
// whole group when a pipe that only the worker holds is closed.
package keeper
