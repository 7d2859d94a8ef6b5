package eventbus

import (
	"strconv"
	"strings"
	"time"
)

// policy is what of a topic's effective settings decides how it is read.
type policy struct {
	cleanup string        // cleanup.policy
	keep    time.Duration // delete.retention.ms: how long a tombstone can be read at least
}

// policyOf reads a topic's effective settings. What the broker did not tell is
// taken as Kafka's default.
func policyOf(c topicConfigs) policy {
	p := policy{cleanup: "delete", keep: 24 * time.Hour}
	if v, ok := c.effective["cleanup.policy"]; ok {
		p.cleanup = v
	}
	if ms, err := strconv.ParseInt(c.effective["delete.retention.ms"], 10, 64); err == nil {
		p.keep = time.Duration(min(ms, int64(1<<62)/1e6)) * time.Millisecond
	}
	return p
}

// decisive are the settings that decide what stays in a topic and what is taken into
// it. Where a topic has none of its own, another bus may give it another.
var decisive = []string{"cleanup.policy", "retention.ms", "retention.bytes", "delete.retention.ms", "min.compaction.lag.ms",
	"max.compaction.lag.ms", "message.timestamp.type", "max.message.bytes"}

// inherited are the decisive settings that a topic has from its brokers.
func inherited(c topicConfigs) map[string]string {
	list := map[string]string{}
	for _, k := range decisive {
		v, told := c.effective[k]
		if _, own := c.own[k]; told && !own {
			list[k] = v
		}
	}
	return list
}

// compact tells whether the cleaner takes replaced records out.
func (p policy) compact() bool { return strings.Contains(p.cleanup, "compact") }
