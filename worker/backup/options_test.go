package backup

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"catalog-backup/shared/config"
)

// The keys of the bus reach the room that reads it.
func TestBusOptionsComeFromTheConfiguration(t *testing.T) {
	options := func(keys string) Options {
		text := "instance: catalog\nversion: 1.2.3\neventbus:\n  brokers: ['kafka1:9092']\n" + keys
		c, err := config.Parse("/etc/c.yaml", []byte(text), func(string) string { return "" })
		require.NoError(t, err)
		return Options{Config: c}
	}
	o := options("").eventBusOptions()
	require.Empty(t, o.AllowGapsIn)
	require.Equal(t, 15*time.Minute, o.TransactionWait)
	o = options("  allow_gaps_in: [lineage.state, 'compose.*']\n  transaction_wait: 90s\n").eventBusOptions()
	require.Equal(t, []string{"lineage.state", "compose.*"}, o.AllowGapsIn)
	require.Equal(t, 90*time.Second, o.TransactionWait)
	require.False(t, o.AllowGaps)
}
