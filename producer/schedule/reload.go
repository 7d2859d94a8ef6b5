package schedule

import (
	"bytes"
	"time"

	"catalog-backup/shared/schedule"

	"github.com/sirupsen/logrus"
)

// reread looks whether the configuration has changed and takes its plans over. A
// file that cannot be used is refused once, loudly, and the old plans go on.
func (s *Service) reread(forced bool) {
	now := s.p.Clock.Now()
	if since := now.Sub(s.checked); !forced && since >= 0 && since < reloadInterval || s.p.Read == nil {
		return
	}
	s.checked = now
	fresh, err := s.p.Read()
	if err != nil {
		fresh = []byte("cannot be read: " + err.Error())
	}
	if !forced && bytes.Equal(fresh, s.text) {
		return
	}
	s.text = fresh
	if err != nil {
		s.p.Log.WithError(err).Error("the configuration cannot be read; the old plans go on")
		return
	}
	c, err := s.p.Parse(fresh)
	if err != nil {
		s.p.Log.WithError(err).Error("the changed configuration is refused; the old plans go on")
		return
	}
	if c.Instance != s.instance || c.Redis != s.p.Config.Redis || c.RedisSocket() != s.p.Config.RedisSocket() {
		s.p.Log.Error("the changed configuration names another instance or another Redis, which takes a restart of the scheduler; the old plans go on")
		return
	}
	s.take(schedule.Plans(c), now)
}

func (s *Service) take(plans []schedule.Plan, now time.Time) {
	s.mu.Lock()
	s.plans = plans
	s.mu.Unlock()
	s.signed = time.Time{} // what is in force now is said before it is looked at
	names := []string{}
	for _, p := range plans {
		names = append(names, p.Name+" next "+p.Next(now).Format(time.RFC3339))
	}
	s.p.Log.WithFields(logrus.Fields{"plans": names}).Info("the configuration was read again")
}
