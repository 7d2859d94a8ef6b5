package archive

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"catalog-backup/worker/stage"
)

func TestExcludesAndHardLinks(t *testing.T) {
	root := filepath.Join(t.TempDir(), "app")
	write(t, root+"/a.tmp", []byte("linked"), 0644)
	require.NoError(t, os.Link(root+"/a.tmp", root+"/b"))
	require.NoError(t, os.Link(root+"/a.tmp", root+"/c"))
	write(t, root+"/cache/x", nil, 0644)
	write(t, root+"/keep/x.tmp/y", nil, 0644)
	path, files, _ := backup(t, FilesOptions{Paths: []string{root}, Exclude: []string{"*.tmp", "cache/"}})
	require.Equal(t, []string{root, root + "/b", root + "/c", root + "/keep"}, names(files))
	require.Equal(t, "file", below(files)[1].Kind)
	require.Equal(t, "hardlink", below(files)[2].Kind)
	require.Equal(t, root+"/b", below(files)[2].Target)
	require.Empty(t, verify(t, path, files))
	dir, _ := extract(t, path)
	b, err := os.ReadFile(dir + "/files" + root + "/c")
	require.NoError(t, err)
	require.Equal(t, "linked", string(b))
	bytes, count, err := EstimateFiles(context.Background(), FilesOptions{Paths: []string{root}, Exclude: []string{"*.tmp", "cache/"}})
	require.NoError(t, err)
	require.Equal(t, int64(6), bytes)
	require.Equal(t, int64(len(files.Entries)), count)
}

func TestConfiguredPaths(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	app := dir + "/app"
	write(t, app+"/x/y/f", []byte("1"), 0644)
	write(t, app+"/x/skip/g", []byte("2"), 0644)
	write(t, dir+"/other/h", []byte("3"), 0644)
	write(t, dir+"/single", []byte("4"), 0644)
	require.NoError(t, os.Symlink(dir+"/other", dir+"/link"))
	require.NoError(t, os.Symlink(app+"/x", dir+"/into"))
	require.NoError(t, os.Symlink(dir+"/other", app+"/inner"))

	_, files, found := backup(t, FilesOptions{Paths: []string{app + "/x", app + "/", app, app + "/x/skip", app + "/inner", dir + "/link", dir + "/into", dir + "/single"}, Exclude: []string{"skip/"}})
	require.ElementsMatch(t, []string{app, app + "/x", app + "/x/y", app + "/x/y/f", app + "/x/skip", app + "/x/skip/g",
		app + "/inner", dir + "/other", dir + "/other/h", dir + "/link", dir + "/into", dir + "/single"}, names(files), "each once, below its real name; links stay links")
	require.Empty(t, found.Notes, "%v", found.Notes)

	for _, o := range []FilesOptions{
		{Paths: []string{dir + "/none"}}, {Paths: []string{"relative"}}, {Paths: []string{dir}, Exclude: []string{"["}},
		{Paths: []string{app + "/x"}, Never: []string{app}}, {Paths: []string{dir + "/into"}, Never: []string{app}},
	} {
		_, _, err := EstimateFiles(context.Background(), o)
		require.True(t, stage.IsPermanent(err), "%v: %v", o, err)
	}
	_, _, err = EstimateFiles(context.Background(), FilesOptions{})
	require.NoError(t, err)
}

func TestNeverEntersItsOwnDirectories(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/app/data", []byte("1"), 0644)
	write(t, dir+"/app/dump/secret", []byte("2"), 0644)
	write(t, dir+"/temp/secret", []byte("3"), 0644)
	require.NoError(t, os.MkdirAll(dir+"/app/bound", 0755))
	require.NoError(t, unix.Mount(dir+"/temp", dir+"/app/bound", "", unix.MS_BIND, ""))
	defer unix.Unmount(dir+"/app/bound", 0)
	path, files, found := backup(t, FilesOptions{Paths: []string{dir + "/app"}, Never: []string{dir + "/app/dump", dir + "/temp", dir + "/later"}})
	require.Equal(t, []string{dir + "/app", dir + "/app/bound", dir + "/app/data", dir + "/app/dump"}, names(files))
	require.Len(t, found.Notes, 2)
	require.Empty(t, verify(t, path, files))
}

func TestAddTree(t *testing.T) {
	root := filepath.Join(t.TempDir(), "repo")
	write(t, root+"/backup/db/backup.info", []byte("info"), 0640)
	write(t, root+"/backup/db/1F/bundle/1", noise(300000), 0640)
	write(t, root+"/archive/db/archive.info", []byte("ainfo"), 0640)
	require.NoError(t, os.Symlink("1F", root+"/backup/db/latest"))
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	w, err := Create(path, Options{})
	require.NoError(t, err)
	asked := map[string]bool{}
	require.NoError(t, AddTree(context.Background(), w, root, "postgres/pgbackrest", []string{"backup/db/backup.info", "archive/db/archive.info"},
		func(rel string) Class { asked[rel] = true; return Packed }, nil))
	require.Error(t, AddTree(context.Background(), w, root, "x", []string{"missing"}, nil, nil))
	require.NoError(t, AddTree(context.Background(), w, t.TempDir(), "nothing", nil, nil, nil))
	_, err = w.Finish()
	require.NoError(t, err)
	var got []string
	each(t, path, func(h *Header, _ io.Reader) { got = append(got, strings.TrimPrefix(h.Name, "postgres/pgbackrest/")) })
	require.Equal(t, []string{"backup", "backup/db", "backup/db/backup.info", "archive", "archive/db", "archive/db/archive.info",
		"backup/db/1F", "backup/db/1F/bundle", "backup/db/1F/bundle/1", "backup/db/latest"}, got)
	require.True(t, asked["backup/db/1F/bundle/1"])
	dir := t.TempDir()
	x, err := NewExtractor(dir, ExtractOptions{Strip: "postgres/pgbackrest/", Owner: &Owner{65534, 65534}})
	require.NoError(t, err)
	each(t, path, func(h *Header, r io.Reader) { require.NoError(t, x.Entry(h, r)) })
	_, err = x.Finish()
	require.NoError(t, err)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(dir+"/backup/db/1F/bundle/1", &st))
	require.Equal(t, uint32(65534), st.Uid)
	require.Equal(t, int64(300000), st.Size)
	require.True(t, bytes.Equal(must(os.ReadFile(root+"/backup/db/1F/bundle/1")), must(os.ReadFile(dir+"/backup/db/1F/bundle/1"))))

	write(t, root+"/growing", nil, 0600)
	require.NoError(t, unix.Mkfifo(root+"/pipe", 0600))
	require.Error(t, AddTree(context.Background(), mustCreate(t), root, "p", nil, nil, nil))
}

func TestPriority(t *testing.T) {
	require.Error(t, Priority{Nice: 20}.Apply())
	require.Error(t, Priority{IOClass: "realtime"}.Apply())
	require.Error(t, Priority{IOClass: IOBestEffort, IOLevel: 8}.Apply())
	require.NoError(t, Priority{IOClass: IOBestEffort, IOLevel: 4}.Apply())
	n, err := FreeSpace("/tmp/none/such/place")
	require.NoError(t, err)
	require.Positive(t, n)
}
