package sample

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
)

func none(string) bool { return false }

// What the demo proves is worth what its comparisons find.
func TestTreeFindsEveryChange(t *testing.T) {
	dir := t.TempDir()
	source, copied := filepath.Join(dir, "source"), filepath.Join(dir, "copy")
	require.NoError(t, os.Mkdir(source, 0o755))
	require.NoError(t, MakeTree(source))
	want, n, err := Tree(source, none)
	require.NoError(t, err)
	require.Greater(t, n.Entries, 600)
	changes := map[string]func() error{
		"content": func() error {
			return exec.Command("dd", "if=/dev/zero", "of="+copied+"/logs/query.log", "bs=1", "seek=1000", "count=1", "conv=notrunc").Run()
		},
		"mode":        func() error { return os.Chmod(copied+"/empty", 0o640) },
		"time":        func() error { return os.Chtimes(copied+"/empty", time.Time{}, time.Unix(1, 1)) },
		"missing":     func() error { return os.Remove(copied + "/-rf") },
		"more":        func() error { return os.WriteFile(copied+"/more", nil, 0o600) },
		"link target": func() error { _ = os.Remove(copied + "/dangling"); return os.Symlink("elsewhere", copied+"/dangling") },
		"hard link": func() error {
			return exec.Command("cp", "--remove-destination", "-p", copied+"/media/deep/picture.bin", copied+"/media/same picture.bin").Run()
		},
		"no attribute": func() error {
			return exec.Command("setfattr", "-x", "user.origin", copied+"/conf/00/settings-0.json").Run()
		},
	}
	for name, change := range changes {
		require.NoError(t, os.RemoveAll(copied))
		require.NoError(t, exec.Command("cp", "-a", source, copied).Run())
		got, _, err := Tree(copied, none)
		require.NoError(t, err)
		require.Empty(t, Differences(want, got), name)
		require.NoError(t, change(), name)
		got, _, err = Tree(copied, none)
		require.NoError(t, err)
		require.NotEmpty(t, Differences(want, got), name)
	}
}

func TestReadBusFindsEveryChange(t *testing.T) {
	b := lab.Kfake(t, lab.KfakeOptions{})
	ctx := context.Background()
	require.NoError(t, FillBus(ctx, b.ClientOpts()...))
	first, err := ReadBus(ctx, nil, b.ClientOpts()...)
	require.NoError(t, err)
	require.Len(t, first.Next, 10)
	require.Len(t, first.Rules, 4)
	second, err := ReadBus(ctx, nil, b.ClientOpts()...)
	require.NoError(t, err)
	require.Equal(t, first, second)

	c, err := b.Client()
	require.NoError(t, err)
	t.Cleanup(c.Close)
	require.NoError(t, c.ProduceSync(ctx, &kgo.Record{Topic: "plain", Value: []byte{}}).FirstErr())
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: "trimmed", At: 1501, LeaderEpoch: -1})
	require.NoError(t, kadm.NewClient(c).CommitAllOffsets(ctx, "behind", offsets))
	third, err := ReadBus(ctx, nil, b.ClientOpts()...)
	require.NoError(t, err)
	require.Len(t, Differences(first.Digests, third.Digests), 1)
	require.Len(t, Differences(first.Next, third.Next), 1)
}

func TestRowsFindEveryChange(t *testing.T) {
	pg := lab.Postgres(t)
	ctx := context.Background()
	space, err := pg.Mkdir("space")
	require.NoError(t, err)
	require.NoError(t, Fill(ctx, pg.DSN(), space))
	first, n, err := Rows(ctx, pg.DSN())
	require.NoError(t, err)
	require.Greater(t, n, int64(400000))
	for _, change := range []string{
		`update attribute set score = score + 0.0001 where id = 7`,
		`delete from audit where id = 60001`,
		`select lo_put((select min(oid) from pg_largeobject_metadata), 3, 'x')`,
	} {
		pg.PsqlIn(Database, change)
		now, _, err := Rows(ctx, pg.DSN())
		require.NoError(t, err)
		require.Len(t, Differences(first, now), 1, change)
		first = now
	}
	pg.PsqlIn(Database, `insert into activity (id) values (1), (2), (4)`)
	_, _, err = LiveRows(ctx, pg.DSN(), 0)
	require.ErrorContains(t, err, "hole")
	rows, _, err := LiveRows(ctx, pg.DSN(), 2)
	require.NoError(t, err)
	require.EqualValues(t, 2, rows)
}
