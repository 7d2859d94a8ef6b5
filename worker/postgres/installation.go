package postgres

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// installations are where packages put the server's programs of a major version.
func installations(major int) []string {
	dirs := []string{
		fmt.Sprintf("/usr/lib/postgresql/%d/bin", major), fmt.Sprintf("/usr/pgsql-%d/bin", major),
		fmt.Sprintf("/usr/lib/postgresql%d/bin", major), "/usr/local/pgsql/bin",
	}
	if p, err := exec.LookPath("pg_ctl"); err == nil {
		dirs = append(dirs, filepath.Dir(p))
	}
	return dirs
}

// findServer looks for the programs of the backup's major version.
func (r *restoration) findServer(ctx context.Context) error {
	dirs := r.o.Installations
	if dirs == nil {
		dirs = installations(r.major())
	}
	for _, dir := range dirs {
		var out bytes.Buffer
		// Both are wanted: Debian's client package has psql, but no server.
		if _, err := os.Stat(filepath.Join(dir, "postgres")); err != nil {
			continue
		}
		if r.o.Runner.Run(ctx, Command{Path: filepath.Join(dir, "pg_ctl"), Args: []string{"--version"}, Env: childEnv(""), Dir: "/", Stdout: &out, Stderr: &out}) != nil {
			continue
		}
		words := strings.Fields(out.String())
		if len(words) < 3 {
			continue
		}
		major, minor, _ := strings.Cut(words[2], ".")
		if major != strconv.Itoa(r.major()) {
			continue
		}
		r.bin = dir
		if n, err := strconv.Atoi(minor); err == nil && n < r.o.Part.ServerVersionNum%10000 {
			r.done.note("PostgreSQL %s is here, the backup is of %s: bring it to that version before use", words[2], r.o.Part.ServerVersion)
		}
		return nil
	}
	r.missingServer()
	return nil
}

// missingServer says what to install, first of all that is left to do.
func (r *restoration) missingServer() {
	major := r.major()
	r.done.warn("PostgreSQL %d is not installed here, and no other major version can start this data directory", major)
	if _, err := os.Stat("/etc/redhat-release"); err == nil && r.o.Installations == nil {
		r.programs = fmt.Sprintf("/usr/pgsql-%d/bin", major)
		r.done.before("install PostgreSQL %d: dnf install postgresql%d-server, from https://yum.postgresql.org", major, major)
		return
	}
	r.programs = fmt.Sprintf("/usr/lib/postgresql/%d/bin", major)
	from := "from https://apt.postgresql.org"
	if with := map[int]string{11: "Debian 10", 12: "Ubuntu 20.04", 13: "Debian 11", 14: "Ubuntu 22.04", 15: "Debian 12", 16: "Ubuntu 24.04", 17: "Debian 13"}[major]; with != "" {
		from += ", or as it comes with " + with
	}
	r.done.before("install PostgreSQL %d: apt-get install postgresql-%d, %s", major, major, from)
}

// program is the absolute path of one of the server's programs, also where it is
// still to be installed.
func (r *restoration) program(name string) string {
	if r.bin != "" {
		return shellQuote(filepath.Join(r.bin, name))
	}
	return shellQuote(filepath.Join(r.programs, name))
}

// asOwner makes a command run as the account that owns the restored server.
func (r *restoration) asOwner(command string) string {
	if !asRoot() {
		return command
	}
	runuser, err := exec.LookPath("runuser")
	if err != nil {
		runuser = "/sbin/runuser"
	}
	return fmt.Sprintf("%s -u %s -- %s", runuser, shellQuote(r.owner.name), command)
}

func (r *restoration) startCommand() {
	// Recovery may take longer than pg_ctl's own 60 s.
	r.done.StartCommand = r.asOwner(fmt.Sprintf("%s -D %s -l %s -t 86400 -w start", r.program("pg_ctl"), shellQuote(r.done.DataDir), shellQuote(filepath.Join(r.o.Target, "server.log"))))
}

// complaint finds the setting that the server does not take, in the messages of
// its reading of the configuration (guc.c; LC_ALL is C).
var complaint = regexp.MustCompile(`parameter "([A-Za-z0-9_.$]+)"`)

// trial lets the installed server read the configuration, as it does at its start:
// it alone knows which values are ones on this host (locales, time zones, libraries
// for compression, limits of the system). What it refuses is put out of force.
func (r *restoration) trial(ctx context.Context) error {
	if r.bin == "" {
		return nil
	}
	for {
		said, err := r.readAsServer(ctx)
		if stop := ended(ctx, "try the restored configuration"); stop != nil {
			return stop
		}
		if err == nil {
			return nil
		}
		fresh := false
		for _, m := range complaint.FindAllStringSubmatch(said, -1) {
			name := strings.ToLower(m[1])
			if _, set := r.values[name]; set && !r.refused[name] {
				r.refused[name], fresh = true, true
			}
		}
		if !fresh {
			lines := strings.FieldsFunc(said, func(c rune) bool { return c == '\n' })
			r.done.warn("the server of this host does not take the restored configuration: %s: correct it in %s before the start", strings.Join(lines[:min(len(lines), 4)], "; "), r.done.DataDir)
			return nil
		}
		r.done.note("this host's server does not take the values of %s: they were put out of force", strings.Join(sortedNames(r.refused), ", "))
		if err := writeFile(filepath.Join(r.done.DataDir, "postgresql.auto.conf"), []byte(r.ownLines), 0o600); err != nil {
			return fmt.Errorf("restore PostgreSQL: %w", err)
		}
		if err := r.rewriteConfig(); err != nil {
			return err
		}
		if err := r.writeBlock(); err != nil {
			return err
		}
	}
}

// readAsServer runs `postgres -C`, which reads the configuration, prints one
// setting and ends; it loads no library, opens no port, and root may run it. Its
// messages are English whatever the file says.
func (r *restoration) readAsServer(ctx context.Context) (string, error) {
	var out bytes.Buffer
	err := r.o.Runner.Run(ctx, Command{Path: filepath.Join(r.bin, "postgres"), Args: []string{"-C", "port", "-D", r.done.DataDir, "-c", "lc_messages=C"}, Env: childEnv(""), Dir: "/", Stdout: &out, Stderr: &out})
	return out.String(), err
}

func sortedNames(set map[string]bool) []string {
	var names []string
	for name := range set {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func numbers(list []int) string {
	var words []string
	for _, n := range list {
		words = append(words, strconv.Itoa(n))
	}
	return strings.Join(words, ", ")
}

func shellQuote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/._-+:@,%", r)
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
