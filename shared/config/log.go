package config

import (
	"io"
	"os"
	"time"

	"github.com/sirupsen/logrus"
)

// Logger is the log of a program that runs as a service, written to w. It never waits
// for long for the reader of a file that is a pipe, a socket or a terminal.
func (l Log) Logger(w io.Writer) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(w)
	if f, ok := w.(*os.File); ok {
		log.SetOutput(&stream{file: f, gap: func(n int) []byte {
			e := logrus.NewEntry(log).WithField("lines", n)
			e.Time, e.Level, e.Message = time.Now(), logrus.WarnLevel, "the reader of the log did not read; lines are lost"
			b, _ := log.Formatter.Format(e)
			return b
		}})
	}
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
