package dashboard

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"

	"catalog-backup/producer/start"
	"catalog-backup/shared/run"
	"catalog-backup/shared/set"

	"github.com/sirupsen/logrus"
)

// form is a button: where it posts to and the proof that our page made it.
type form struct{ URL, Token string }

// token proves that a form of ours was sent to this user for this purpose. The key is
// made anew at each start: a form from before then must be loaded again.
func (s *Service) token(user, purpose string) string {
	m := hmac.New(sha256.New, s.key)
	fmt.Fprintf(m, "%q %q", user, purpose)
	return hex.EncodeToString(m.Sum(nil))
}

func (s *Service) form(r *http.Request, url string) *form {
	if !s.o.AllowActions {
		return nil
	}
	return &form{URL: url, Token: s.token(userOf(r), url)}
}

func (s *Service) offerStart(r *http.Request, v *instanceView) {
	if v.Open == nil && v.Unreadable == "" {
		v.Start = s.form(r, v.URL+"/backups")
	}
	if v.Open != nil {
		s.offerCancel(r, v.Open)
	}
}

func (s *Service) offerCancel(r *http.Request, v *runView) {
	if !v.State.Over() && !v.Cancel && v.Ending == "" && !v.Committed {
		v.Cancels = s.form(r, v.URL+"/cancel")
	}
}

// audit says in the log who did what, from where, and what came of it.
func (s *Service) audit(r *http.Request, action string, fields logrus.Fields, result string) {
	line := s.o.Log.WithFields(fields).WithFields(logrus.Fields{"audit": true, "action": action, "user": printable(userOf(r)), "remote": r.RemoteAddr, "result": result})
	if via := r.Header.Get("X-Forwarded-For"); via != "" {
		line = line.WithField("forwarded_for", printable(via[:min(len(via), 200)])) // what a proxy says; it can be invented
	}
	line.Info("dashboard: " + action)
}

// The actions, as the log names them.
const (
	startABackup = "start a backup"
	cancelRun    = "cancel a run"
)

// allowed refuses actions that are switched off and forms that are not ours.
func (s *Service) allowed(action string, do http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		fields := logrus.Fields{"path": printable(r.URL.Path)}
		if !s.o.AllowActions {
			s.audit(r, action, fields, "refused: dashboard.allow_actions is false")
			s.say(w, r, http.StatusForbidden, "Not allowed", "This dashboard only shows. Set dashboard.allow_actions: true to start backups and cancel runs here; or use the command line.")
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
		if err := r.ParseForm(); err != nil {
			s.say(w, r, http.StatusBadRequest, "This form cannot be read", "Go back, load the page anew and try again.")
			return
		}
		if !hmac.Equal([]byte(r.PostForm.Get("token")), []byte(s.token(userOf(r), r.URL.Path))) {
			s.audit(r, action, fields, "refused: the form's token is wrong")
			s.say(w, r, http.StatusForbidden, "This form is out of date", "It was made by another page, for somebody else, or before the dashboard was started again. Go back, load the page anew and try again.")
			return
		}
		do(w, r)
	}
}

func (s *Service) startBackup(w http.ResponseWriter, r *http.Request, name string) {
	requested := set.Type(r.PostForm.Get("type"))
	if requested != set.Full && requested != set.Incremental {
		s.say(w, r, http.StatusBadRequest, "No such type", "A backup is full or incremental.")
		return
	}
	fields := logrus.Fields{"instance": name, "type": string(requested)}
	rec, err := s.o.Starter.Open(r.Context(), start.Request{Instance: name, Requested: requested})
	fields["run"] = rec.ID
	var busy *run.BusyError
	switch {
	case errors.As(err, &busy):
		fields["run"] = busy.Run.ID
		s.audit(r, startABackup, fields, "refused: a run is active")
		s.show(w, r, http.StatusConflict, "message", page{Title: "Another run is active", Body: message{Heading: "Another run is active",
			Text: "An instance makes one backup at a time.", URL: "/runs/" + busy.Run.ID, Link: "Run " + busy.Run.ID}})
		return
	case err != nil:
		why := s.o.Explain(err).Error()
		s.audit(r, startABackup, fields, "uncertain: "+why)
		s.show(w, r, http.StatusServiceUnavailable, "message", page{Title: "Redis is away", Body: message{Heading: "Redis is away",
			Text: "Whether the backup began is not known; the link tells later.", Detail: why, URL: "/runs/" + rec.ID, Link: "Run " + rec.ID}})
		return
	}
	result := "run opened"
	if err := s.o.Starter.HandOver(r.Context(), rec); err != nil {
		result = "run opened; a worker will take it up by itself: " + s.o.Explain(err).Error()
	}
	s.audit(r, startABackup, fields, result)
	http.Redirect(w, r, "/runs/"+rec.ID, http.StatusSeeOther)
}

// confirmBody asks before a run is cancelled.
type confirmBody struct {
	Run  runView
	Form *form
}

func (s *Service) confirmCancel(w http.ResponseWriter, r *http.Request, rec run.Record) {
	v := runViewOf(rec, s.now(r.Context()))
	s.offerCancel(r, &v)
	if v.Cancels == nil {
		http.Redirect(w, r, v.URL, http.StatusSeeOther)
		return
	}
	s.show(w, r, http.StatusOK, "confirm", page{Title: "Cancel run " + rec.ID, Body: confirmBody{Run: v, Form: v.Cancels}})
}

func (s *Service) cancel(w http.ResponseWriter, r *http.Request, rec run.Record) {
	fields := logrus.Fields{"instance": rec.Instance, "run": rec.ID}
	answer, err := s.o.Store.Cancel(r.Context(), rec)
	if err != nil {
		s.audit(r, cancelRun, fields, "uncertain: "+s.o.Explain(err).Error())
		s.away(w, r, err)
		return
	}
	s.audit(r, cancelRun, fields, answer)
	if answer == run.CancelLate {
		s.show(w, r, http.StatusConflict, "message", page{Title: "Too late", Body: message{Heading: "Too late",
			Text: "The run is committing its set, or has done so. The set stays.", URL: "/runs/" + rec.ID, Link: "Run " + rec.ID}})
		return
	}
	http.Redirect(w, r, "/runs/"+rec.ID, http.StatusSeeOther)
}
