package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"catalog-backup/worker/stage"
)

// Files in Work.Repo besides the repository; all are gone after a good backup.
const (
	toolConfigName = "pgbackrest.conf"
	passfileName   = "pgpass"
)

// repoFirst lists what must come first in an archive.
func repoFirst(stanza, label string) []string {
	var list []string
	for _, base := range []string{
		"archive/" + stanza + "/archive.info",
		"backup/" + stanza + "/backup.info",
		"backup/" + stanza + "/" + label + "/backup.manifest",
	} {
		list = append(list, base, base+".copy")
	}
	return list
}

// RepoFirst lists the paths, relative to the repository (Work.RepoDir), that must
// come first in the archive so that it can be verified in one pass.
func RepoFirst(repo, label string) ([]string, error) {
	if !validLabel(label) {
		return nil, stage.Permanentf("list the repository %s: %q is no label of pgBackRest", repo, label)
	}
	list := repoFirst(Stanza, label)
	for _, rel := range list {
		if st, err := os.Lstat(filepath.Join(repo, rel)); err != nil {
			return nil, fmt.Errorf("list the repository %s: %w", repo, err)
		} else if !st.Mode().IsRegular() {
			return nil, fmt.Errorf("list the repository %s: %s is no file", repo, rel)
		}
	}
	return list, nil
}

// prepareRepo makes the repository's directories and pgBackRest's configuration
// in w.Repo. As root all of it is given to the account of the cluster, which
// pgBackRest runs under; nobody else may look in.
func prepareRepo(o Options, f *Facts, w Work, password string) error {
	hand := func(path string, mode os.FileMode) error {
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
		if !asRoot() {
			return nil
		}
		return os.Lchown(path, int(f.OwnerUID), int(f.OwnerGID))
	}
	prepare := func() error {
		if asRoot() && f.OwnerUID != 0 {
			if err := hand(w.Repo, 0o700); err != nil {
				return err
			}
		}
		for _, name := range []string{"repo", "log", "lock", "spool"} {
			dir := filepath.Join(w.Repo, name)
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			if err := hand(dir, 0o700); err != nil {
				return err
			}
		}
		conf := filepath.Join(w.Repo, toolConfigName)
		if err := writeFile(conf, []byte(toolConfig(o, f, w)), 0o640); err != nil {
			return err
		}
		if err := hand(conf, 0o640); err != nil {
			return err
		}
		if password == "" {
			return nil
		}
		pass := filepath.Join(w.Repo, passfileName)
		line := fmt.Sprintf("*:*:*:*:%s\n", strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(password))
		if err := writeFile(pass, []byte(line), 0o600); err != nil {
			return err
		}
		return hand(pass, 0o600)
	}
	err := prepare()
	if errors.Is(err, fs.ErrExist) {
		return stage.Permanentf("prepare the repository in %s: %w: it must be fresh: remove what an earlier attempt left", w.Repo, err)
	}
	if err != nil {
		return fmt.Errorf("prepare the repository in %s: %w", w.Repo, noSpace(err))
	}
	return nil
}

// toolConfig is pgBackRest's configuration for one backup. It holds no secret.
func toolConfig(o Options, f *Facts, w Work) string {
	var b strings.Builder
	set := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	b.WriteString("[global]\n")
	for _, name := range []string{"log", "lock", "spool"} {
		set(name+"-path", filepath.Join(w.Repo, name))
	}
	set("repo1-path", w.RepoDir())
	set("log-level-console", "info")
	set("log-level-file", "off")
	set("log-level-stderr", "off")
	set("process-max", o.processes())
	set("compress-type", f.CompressType)
	if f.CompressType != "none" {
		set("compress-level", o.compressLevel())
	}
	set("start-fast", "y")
	set("resume", "n")
	set("expire-auto", "n")
	set("repo1-retention-full", 9999999)
	set("repo1-bundle", "y")
	if f.DataChecksums {
		set("checksum-page", "y")
	}
	fmt.Fprintf(&b, "\n[%s]\n", Stanza)
	set("pg1-path", f.DataDirectory)
	set("pg1-port", f.Port)
	set("pg1-socket-path", f.SocketDir)
	set("pg1-database", f.Database)
	set("pg1-user", f.Role)
	return b.String()
}

// tidyRepo removes what a restore does not need: the link "latest", which a tar
// reader may not follow, and the history, which repeats the manifest.
func tidyRepo(w Work) error {
	for _, path := range []string{
		filepath.Join(w.RepoDir(), "backup", Stanza, "latest"),
		filepath.Join(w.RepoDir(), "backup", Stanza, "backup.history"),
		filepath.Join(w.Repo, passfileName),
		filepath.Join(w.Repo, toolConfigName),
		filepath.Join(w.Repo, "log"), filepath.Join(w.Repo, "lock"), filepath.Join(w.Repo, "spool"),
	} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("tidy the repository: %w", err)
		}
	}
	return nil
}
