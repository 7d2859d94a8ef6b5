package redisserver

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"catalog-backup/worker/stage"
)

// oldest is the oldest Redis that works: asynq archives tasks with ZRANGE … BYSCORE.
const oldest = "6.2"

func tooOld(major, minor int, what string) error {
	if major > 6 || (major == 6 && minor >= 2) {
		return nil
	}
	return stage.Permanentf("%s is Redis %d.%d, too old; upgrade to %s or newer", what, major, minor, oldest)
}

// Client is what Check needs of a redis.Client.
type Client interface {
	Info(ctx context.Context, section ...string) *redis.StringCmd
	ConfigGet(ctx context.Context, parameter string) *redis.MapStringStringCmd
}

// Check looks at a Redis, embedded or not, before work is trusted to it. A
// permanent error means that runs would break on it, each warning that they might
// be lost. What it may not look at it warns about.
func Check(ctx context.Context, c Client) (warnings []string, err error) {
	server, err := info(ctx, c, "server")
	if err != nil {
		return unchecked(nil, "its version", "INFO", err)
	}
	major, minor, ok := version(server["redis_version"])
	if !ok {
		warnings = append(warnings, fmt.Sprintf("Redis does not say its version (%q); see that it is %s or newer", server["redis_version"], oldest))
	} else if err := tooOld(major, minor, "the server"); err != nil {
		return nil, err
	}
	if server["redis_mode"] == "cluster" {
		return nil, stage.Permanentf("Redis runs in Cluster mode, which is not supported: our scripts change several keys at once; use a single Redis or Sentinel")
	}
	if server["redis_mode"] == "sentinel" {
		return nil, stage.Permanentf("this is a Sentinel, not a Redis; set the address of the Redis itself")
	}
	replication, err := info(ctx, c, "replication")
	if err != nil {
		return unchecked(warnings, "its role", "INFO", err)
	}
	if replication["role"] == "slave" {
		return nil, stage.Permanentf("Redis is a replica of %s:%s and takes no writes; set the primary's address", replication["master_host"], replication["master_port"])
	}
	if warnings, err = checkPolicy(ctx, c, warnings); err != nil {
		return warnings, err
	}
	return checkPersistence(ctx, c, warnings)
}

// checkPolicy refuses a Redis that may throw keys away.
func checkPolicy(ctx context.Context, c Client, warnings []string) ([]string, error) {
	policy, err := setting(ctx, c, "maxmemory-policy", "memory", "maxmemory_policy")
	if err != nil {
		return unchecked(warnings, "its maxmemory-policy, which must be noeviction,", "CONFIG and INFO", err)
	}
	if policy == "" {
		return append(warnings, "Redis does not say its maxmemory-policy; see that it is noeviction, or it may throw tasks and locks away"), nil
	}
	if policy != "noeviction" {
		return warnings, stage.Permanentf("Redis may throw tasks and locks away: its maxmemory-policy is %s; set it: CONFIG SET maxmemory-policy noeviction, and the same in its configuration", policy)
	}
	return warnings, nil
}

// checkPersistence warns of a Redis that loses open runs with a restart.
func checkPersistence(ctx context.Context, c Client, warnings []string) ([]string, error) {
	const remedy = "CONFIG SET appendonly yes, and the same in its configuration"
	persistence, err := info(ctx, c, "persistence")
	if err != nil {
		return unchecked(warnings, "its persistence", "INFO", err)
	}
	switch persistence["aof_enabled"] {
	case "1":
	case "0":
		return append(warnings, "Redis keeps no append-only file: a restart of it loses open runs; set it: "+remedy), nil
	default:
		return append(warnings, "Redis does not say whether it keeps an append-only file; see that it does: "+remedy), nil
	}
	if persistence["aof_last_write_status"] == "err" {
		warnings = append(warnings, "Redis could not write its append-only file lately; see its log and the free space of its disk")
	}
	fsync, err := setting(ctx, c, "appendfsync", "", "")
	if err == nil && fsync == "no" {
		warnings = append(warnings, "Redis does not sync its append-only file: a crash of its machine loses runs; set it: CONFIG SET appendfsync everysec, and the same in its configuration")
	}
	return warnings, nil
}

// unchecked turns a refusal of the server into a warning, and leaves an error of
// the connection, or of its password, as it is.
func unchecked(warnings []string, what, command string, err error) ([]string, error) {
	if isLoginError(err) {
		return warnings, stage.Permanentf("Redis refuses the login: %w; set the user name and password that it expects", err)
	}
	var refusal redis.Error
	if !errors.As(err, &refusal) || strings.HasPrefix(err.Error(), "LOADING") {
		return warnings, fmt.Errorf("checking Redis: %w; see that it runs and is reached", err)
	}
	return append(warnings, fmt.Sprintf("Redis does not let us check %s (%s: %v); allow its user %s, or see to it yourself", what, command, err, command)), nil
}

func isLoginError(err error) bool {
	return strings.HasPrefix(err.Error(), "NOAUTH") || strings.HasPrefix(err.Error(), "WRONGPASS") || strings.HasPrefix(err.Error(), "ERR AUTH")
}

// setting reads a setting by CONFIG, which managed servers forbid, or else from
// the INFO section, if there is one.
func setting(ctx context.Context, c Client, name, section, field string) (string, error) {
	values, err := c.ConfigGet(ctx, name).Result()
	if err == nil && values[name] != "" {
		return values[name], nil
	}
	if section == "" {
		return "", err
	}
	fields, ierr := info(ctx, c, section)
	if ierr != nil {
		return "", ierr
	}
	return fields[field], nil
}

// info reads a section of INFO.
func info(ctx context.Context, c Client, section string) (map[string]string, error) {
	text, err := c.Info(ctx, section).Result()
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields, nil
}

func version(s string) (major, minor int, ok bool) {
	parts := strings.SplitN(s, ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return major, minor, err1 == nil && err2 == nil
}
