package archive

import (
	"fmt"

	"catalog-backup/worker/stage"
)

// tally collects findings of one sort in one line.
type tally struct{ warnings, notes []*said }

type said struct {
	what  string
	names []string
	more  int
}

// mostNames is how many names one finding lists.
const mostNames = 20

func say(list []*said, what, name string) []*said {
	var s *said
	for _, x := range list {
		if x.what == what {
			s = x
		}
	}
	if s == nil {
		s = &said{what: what}
		list = append(list, s)
	}
	if len(s.names) < mostNames {
		s.names = append(s.names, show(name))
	} else {
		s.more++
	}
	return list
}

func (t *tally) warn(what, name string) { t.warnings = say(t.warnings, what, name) }
func (t *tally) note(what, name string) { t.notes = say(t.notes, what, name) }

func (t *tally) findings() stage.Findings {
	var f stage.Findings
	for _, s := range t.warnings {
		f.Warn("%s", s.line())
	}
	for _, s := range t.notes {
		f.Note("%s", s.line())
	}
	return f
}

func (s *said) line() string {
	if len(s.names) == 0 {
		return "files: " + s.what
	}
	line := fmt.Sprintf("files: %s: %d: ", s.what, len(s.names)+s.more)
	for i, n := range s.names {
		if i > 0 {
			line += ", "
		}
		line += n
	}
	if s.more > 0 {
		line += fmt.Sprintf(" and %d more", s.more)
	}
	return line
}
