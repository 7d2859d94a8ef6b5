package config

import (
	"io"
	"time"

	"github.com/sirupsen/logrus"
)

// Logger is the log of a program that runs as a service, written to w.
func (l Log) Logger(w io.Writer) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(w)
	if l.Format == "json" {
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	} else {
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, DisableColors: true})
	}
	if level, err := logrus.ParseLevel(l.Level); err == nil {
		log.SetLevel(level)
	}
	return log
}
