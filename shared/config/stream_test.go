package config

import (
	"bufio"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The reader of the log hangs, as a container's log driver may: who logs goes on.
func TestALogWhoseReaderHangs(t *testing.T) {
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	defer write.Close()
	write.Fd() // it waits, as stderr does
	log := Log{Level: "info", Format: "json"}.Logger(write)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 5000 {
			log.Info("a line of the log")
		}
		log.Info(strings.Repeat("a long line ", 10000))
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the log waits for its reader")
	}
	lines := bufio.NewReader(read)
	require.NoError(t, read.SetReadDeadline(time.Now().Add(20*time.Second)))
	n := 0
	for told := false; !told; n++ {
		line, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(line, "{") && strings.HasSuffix(line, "}\n"), line)
		if told = strings.Contains(line, "lines are lost"); !told && n == 100 { // it reads again
			done = make(chan struct{})
			go func() {
				defer close(done)
				for i := 0; i < 10000; i++ {
					log.Info("and on")
				}
			}()
		}
	}
	require.Greater(t, n, 100)
	<-done
}
