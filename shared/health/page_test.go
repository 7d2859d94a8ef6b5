package health

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"catalog-backup/shared/lab"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
)

const pagePath = "../../docs/monitoring.md"

func kindOf(m measure) string {
	switch m.kind {
	case prometheus.CounterValue:
		return "counter"
	case prometheus.GaugeValue:
		return "gauge"
	}
	return "histogram"
}

func page(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(pagePath)
	require.NoError(t, err)
	return string(b)
}

// The table of metrics in the documentation is the one that there is.
func TestPageNamesEveryMetric(t *testing.T) {
	var want []string
	for _, m := range measures {
		want = append(want, strings.ReplaceAll("| `"+m.name+"` | "+kindOf(m)+" | "+strings.Join(m.labels, ", ")+" | "+m.help+" |", "|  |", "| |"))
	}
	var got []string
	for line := range strings.Lines(page(t)) {
		if strings.HasPrefix(line, "| `catalog_backup_") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	require.Equal(t, strings.Join(want, "\n"), strings.Join(got, "\n"))
}

// What the examples ask for are metrics and labels that there are.
func TestPageAsksForMetricsThatThereAre(t *testing.T) {
	known := map[string][]string{}
	for _, m := range measures {
		known[m.name] = m.labels
		if kindOf(m) == "histogram" {
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				known[m.name+part] = append([]string{"le"}, m.labels...)
			}
		}
	}
	found := 0
	for _, m := range regexp.MustCompile(`(catalog_backup_[a-z_]+)(?:\{([^}\n]*)\})?`).FindAllStringSubmatch(page(t), -1) {
		labels, ok := known[m[1]]
		require.True(t, ok, "%s is no metric", m[1])
		for _, l := range regexp.MustCompile(`([a-z_]+)\s*[=!]`).FindAllStringSubmatch(m[2], -1) {
			require.Contains(t, labels, l[1], m[0])
		}
		found++
	}
	require.Greater(t, found, len(measures)+8)
}

// The rules are a file as Prometheus reads it.
func TestPageRules(t *testing.T) {
	m := regexp.MustCompile("(?s)```yml\n(groups:.*?)```").FindStringSubmatch(page(t))
	require.NotNil(t, m)
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	d := yaml.NewDecoder(strings.NewReader(m[1]))
	d.KnownFields(true)
	require.NoError(t, d.Decode(&file))
	require.Len(t, file.Groups, 1)
	require.Len(t, file.Groups[0].Rules, 9)
	for _, r := range file.Groups[0].Rules {
		require.NotEmpty(t, r.Expr, r.Alert)
		require.NotEmpty(t, r.Annotations["summary"], r.Alert)
		require.Contains(t, []string{"critical", "warning"}, r.Labels["severity"], r.Alert)
	}
}

// Every metric that is described is shown, when there is something to show.
func TestEveryDescribedMetricIsShown(t *testing.T) {
	server, c := lab.Redis(t), newClock()
	publish(t, play(t, server, c), c.Now())
	rdb := server.Client()
	defer func() { _ = rdb.Close() }()
	require.NoError(t, rdb.SAdd(ctx, allQueuesKey, "catalog").Err())
	_, text := get(t, newHealth(t, server, Options{Now: c.Now}), "/metrics")
	for _, m := range measures {
		require.Contains(t, text, "# TYPE "+m.name+" "+kindOf(m)+"\n")
	}
}
