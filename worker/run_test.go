package main

import (
	"testing"
	"time"

	"catalog-backup/shared/lab"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

func TestThePollIsTheConfiguredOne(t *testing.T) {
	server := lab.Redis(t)
	rdb := server.Client()
	defer func() { _ = rdb.Close() }()
	require.Equal(t, 20*time.Millisecond, params(configured(t, server, "queue.poll: 20ms\n"), rdb, logrus.New()).Limits.Poll)
	require.Equal(t, 100*time.Millisecond, params(configured(t, server, ""), rdb, logrus.New()).Limits.Poll)
}
