package run

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBegun(t *testing.T) {
	at := time.Date(2026, 11, 28, 1, 2, 3, 4, time.FixedZone("x", 3600))
	got, err := Begun(NewID(at, []byte("abcde")))
	require.NoError(t, err)
	require.Equal(t, at.Truncate(time.Second).UTC(), got)
	for _, id := range []string{"", "20261128t010203z", "20261399t010203z-aaaaaaaa", "../x"} {
		_, err := Begun(id)
		require.Error(t, err, id)
	}
}
