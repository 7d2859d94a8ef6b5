package restore

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"catalog-backup/shared/set"
)

// makeTablespace puts a record that makes a tablespace in the place of the online
// checkpoint's, which has 114 bytes, and of which a backup's WAL always holds one.
func makeTablespace(t testing.TB, wal []byte, location string) {
	t.Helper()
	require.Len(t, location, 83)
	for at := 40; at < len(wal)-114; at += 8 {
		r := wal[at : at+114]
		if binary.LittleEndian.Uint32(r) != 114 || r[16] != 0x10 || r[17] != 0 || at%8192+114 > 8192 {
			continue
		}
		r[16], r[17] = 0, 5
		binary.LittleEndian.PutUint32(r[26:], 4711)
		copy(r[30:], location+"\x00")
		table := crc32.MakeTable(crc32.Castagnoli)
		binary.LittleEndian.PutUint32(r[20:], crc32.Update(crc32.Checksum(r[24:], table), table, r[:20]))
		return
	}
	t.Fatal("no record of an online checkpoint")
}

// TestATablespaceMadeDuringTheBackupIsRefusedBeforeAnythingIsWritten where its directory
// exists; verify names it either way.
func TestATablespaceMadeDuringTheBackupIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	location := scratch(t) + "/"
	location += strings.Repeat("s", 83-len(location))
	require.NoError(t, os.Mkdir(location, 0o700))
	dir, m := source.copyOf(t)
	rewrite(t, dir, set.MainArchive, m, func(list []item) []item {
		stop := &m.Postgres.WAL[len(m.Postgres.WAL)-1]
		for i, x := range list {
			if x.h.Name == set.PostgresRepo+stop.Path {
				z, err := zstd.NewReader(nil)
				require.NoError(t, err)
				wal, err := z.DecodeAll(x.data, nil)
				require.NoError(t, err)
				z.Close()
				makeTablespace(t, wal, location)
				w, err := zstd.NewWriter(nil)
				require.NoError(t, err)
				list[i].data = w.EncodeAll(wal, nil)
				sum, stored := sha1.Sum(wal), sha256.Sum256(list[i].data)
				stop.Path = filepath.Dir(stop.Path) + "/" + stop.Name + "-" + hex.EncodeToString(sum[:]) + ".zst"
				stop.Size, stop.SHA256 = int64(len(list[i].data)), hex.EncodeToString(stored[:])
				list[i].h.Name = set.PostgresRepo + stop.Path
			}
			if x.h.Name == set.ManifestCopy {
				copied := *m
				copied.Archives = []set.Archive{}
				for _, a := range m.Archives {
					copied.Archives = append(copied.Archives, set.Archive{Kind: a.Kind, Name: a.Name})
				}
				var err error
				list[i].data, err = json.MarshalIndent(copied, "", "\t")
				require.NoError(t, err)
			}
			if x.h.Name == set.ManifestCopy || strings.Contains(x.h.Name, stop.Name) {
				list[i].h.Size = int64(len(list[i].data))
			}
		}
		return list
	}, nil)

	s, err := Open(t.Context(), source.manifest(dir), "")
	require.NoError(t, err)
	r, err := Verify(t.Context(), s, VerifyOptions{Kinds: []string{set.MainArchive}})
	require.NoError(t, err)
	require.False(t, r.Good)
	require.Len(t, r.Damage, 1)
	require.True(t, r.Damage[0].Restorable)
	require.Equal(t, PostgresPart, r.Damage[0].Part)
	require.Contains(t, r.Damage[0].Problem, "tablespace 4711 was made at")

	target := filepath.Join(scratch(t), "target")
	_, errs, code := source.run(t, "restore", source.manifest(dir), "--target", target, "--only", PostgresPart)
	require.NotZero(t, code)
	require.Contains(t, errs, location)
	require.Contains(t, errs, "exists on this host")
	require.Contains(t, errs, "nothing was written")
	require.NoFileExists(t, target)
	left, err := os.ReadDir(location)
	require.NoError(t, err)
	require.Empty(t, left)
}
