package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"catalog-backup/shared/lab"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"
)

// nastyFiles adds what an archive gets wrong easily.
func nastyFiles(t *testing.T, app string) {
	at := func(name string) string { return filepath.Join(app, name) }
	require.NoError(t, os.MkdirAll(at("deep/closed"), 0o755))
	require.NoError(t, os.WriteFile(at("deep/closed/secret"), []byte("key"), 0o400))
	require.NoError(t, os.Link(at("deep/closed/secret"), at("hard link")))
	require.NoError(t, os.Symlink("deep/closed/secret", at("link")))
	require.NoError(t, os.Symlink("/nowhere/at all", at("dangling")))
	require.NoError(t, os.WriteFile(at("not utf-8 \xff\xfe"), []byte("x"), 0o644))
	require.NoError(t, os.WriteFile(at("new\nline"), nil, 0o4755))
	require.NoError(t, os.WriteFile(at(strings.Repeat("long", 60)), []byte("y"), 0o600))
	require.NoError(t, unix.Setxattr(at("blob00"), "user.origin", []byte("lineage"), 0))
	sparse, err := os.Create(at("sparse"))
	require.NoError(t, err)
	_, err = sparse.WriteAt([]byte("end"), 50<<20)
	require.NoError(t, errors.Join(err, sparse.Close()))
	old := time.Date(1969, 7, 20, 20, 17, 40, 123456789, time.UTC)
	require.NoError(t, os.Chtimes(at("blob01"), old, old))
	require.NoError(t, os.Chmod(at("deep/closed"), 0o555))
}

// tree describes every file below dir: kind, mode, owner, time, content, attribute.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if rel == "left.tmp" {
			out[rel] = ""
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		content := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(b)
			content = hex.EncodeToString(sum[:8]) + " " + strconv.FormatUint(uint64(st.Nlink), 10)
		case unix.S_IFLNK:
			content, _ = os.Readlink(path)
		}
		attr := make([]byte, 64)
		n, _ := unix.Lgetxattr(path, "user.origin", attr)
		when := fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		if rel == "." {
			when = "" // left.tmp is missing in it
		}
		out[rel] = fmt.Sprintf("%o %d:%d %s %s %q", st.Mode, st.Uid, st.Gid, when, content, attr[:max(n, 0)])
		return nil
	}))
	return out
}

// digests are the records of every partition in their order, in short, as an
// ordinary consumer reads them.
func digests(t *testing.T, b *lab.Broker) map[string]string {
	t.Helper()
	c, err := b.Client()
	require.NoError(t, err)
	defer c.Close()
	ctx, done := context.WithTimeout(context.Background(), 60*time.Second)
	defer done()
	ends, err := kadm.NewClient(c).ListEndOffsets(ctx)
	require.NoError(t, err)
	out := map[string]string{}
	for topic, partitions := range ends {
		for p, end := range partitions {
			if strings.HasPrefix(topic, "__") {
				continue
			}
			reader, err := b.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {p: kgo.NewOffset().AtStart()}}))
			require.NoError(t, err)
			h, n, next := sha256.New(), 0, int64(0)
			for next < end.Offset {
				f := reader.PollFetches(ctx)
				require.NoError(t, f.Err())
				f.EachRecord(func(r *kgo.Record) {
					fmt.Fprintf(h, "%d %d %q %q %v\n", r.Offset, r.Timestamp.UnixMilli(), r.Key, r.Value, r.Headers)
					n, next = n+1, r.Offset+1
				})
			}
			reader.Close()
			out[fmt.Sprintf("%s/%d", topic, p)] = fmt.Sprintf("%d records to %d: %x", n, end.Offset, h.Sum(nil)[:8])
		}
	}
	return out
}
