package task

import (
	"github.com/hibiken/asynq"
	"github.com/sirupsen/logrus"
)

// Quiet passes asynq's log lines on as details: our own records say what matters.
type Quiet struct{ Log logrus.FieldLogger }

var _ asynq.Logger = Quiet{}

func (q Quiet) Debug(args ...any) { q.Log.Debug(args...) }
func (q Quiet) Info(args ...any)  { q.Log.Debug(args...) }
func (q Quiet) Warn(args ...any)  { q.Log.Debug(args...) }
func (q Quiet) Error(args ...any) { q.Log.Debug(args...) }
func (q Quiet) Fatal(args ...any) { q.Log.Error(args...) }
