package cron

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Zone finds a time zone by its name in the IANA database. Local is refused: what
// it means differs from one machine to the next.
func Zone(name string) (*time.Location, error) {
	if name == "" || strings.EqualFold(name, "local") {
		return nil, errors.New("it names no zone; write one such as Europe/Berlin, or UTC")
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("%q is no time zone that is known; write a name such as Europe/Berlin or America/New_York, or UTC", name)
	}
	return zone, nil
}
