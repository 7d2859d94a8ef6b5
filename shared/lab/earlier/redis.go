package earlier

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"
)

// Key is one key of Redis in a form that every version of it takes, unlike an RDB file
// or DUMP. Texts that are not UTF-8 have "base64:" in front.
type Key struct {
	Key   string  `json:"key"`
	Type  string  `json:"type"` // string, hash, list, set or zset
	Value []Value `json:"value"`
	// TTL is how long it had left, in milliseconds; 0 is for ever.
	TTL int64 `json:"ttl_ms,omitempty"`
}

// Value is an element: of a hash with its field, of a sorted set with its score.
type Value struct {
	Field string  `json:"field,omitempty"`
	Text  string  `json:"text"`
	Score float64 `json:"score,omitempty"`
}

func encode(s string) string {
	if utf8.ValidString(s) && !strings.HasPrefix(s, "base64:") {
		return s
	}
	return "base64:" + base64.StdEncoding.EncodeToString([]byte(s))
}

func decode(s string) (string, error) {
	b64, ok := strings.CutPrefix(s, "base64:")
	if !ok {
		return s, nil
	}
	b, err := base64.StdEncoding.DecodeString(b64)
	return string(b), err
}

// SaveRedis writes all keys to path.
func SaveRedis(ctx context.Context, c *redis.Client, path string) error {
	names, err := c.Keys(ctx, "*").Result()
	if err != nil {
		return err
	}
	slices.Sort(names)
	var keys []Key
	for _, name := range names {
		k, err := saveKey(ctx, c, name)
		if err != nil {
			return fmt.Errorf("save the key %s: %w", name, err)
		}
		keys = append(keys, k)
	}
	return writeJSON(path, keys)
}

func saveKey(ctx context.Context, c *redis.Client, name string) (Key, error) {
	k := Key{Key: encode(name)}
	var err error
	if k.Type, err = c.Type(ctx, name).Result(); err != nil {
		return k, err
	}
	ttl, err := c.PTTL(ctx, name).Result()
	if err != nil {
		return k, err
	}
	k.TTL = max(0, ttl.Milliseconds())
	add := func(field, text string, score float64) {
		k.Value = append(k.Value, Value{encode(field), encode(text), score})
	}
	switch k.Type {
	case "string":
		var v string
		v, err = c.Get(ctx, name).Result()
		add("", v, 0)
	case "hash":
		var h map[string]string
		h, err = c.HGetAll(ctx, name).Result()
		for f, v := range h {
			add(f, v, 0)
		}
	case "list", "set":
		var l []string
		if k.Type == "list" {
			l, err = c.LRange(ctx, name, 0, -1).Result()
		} else {
			l, err = c.SMembers(ctx, name).Result()
		}
		for _, v := range l {
			add("", v, 0)
		}
	case "zset":
		var l []redis.Z
		l, err = c.ZRangeWithScores(ctx, name, 0, -1).Result()
		for _, z := range l {
			add("", z.Member.(string), z.Score)
		}
	default:
		err = fmt.Errorf("its type %s is not known here", k.Type)
	}
	if k.Type == "hash" || k.Type == "set" {
		slices.SortFunc(k.Value, func(a, b Value) int { return strings.Compare(a.Field+a.Text, b.Field+b.Text) })
	}
	return k, err
}

// LoadRedis brings the keys at path back, with the time to live that they had left.
// moved puts another directory in the place of the one that the records name; both are
// of one length, since some records are binary.
func LoadRedis(ctx context.Context, c *redis.Client, path string, moved func(string) string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var keys []Key
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&keys); err != nil {
		return err
	}
	for _, k := range keys {
		if err := loadKey(ctx, c, k, moved); err != nil {
			return fmt.Errorf("load the key %s: %w", k.Key, err)
		}
	}
	return nil
}

func loadKey(ctx context.Context, c *redis.Client, k Key, moved func(string) string) error {
	name, err := decode(k.Key)
	if err != nil {
		return err
	}
	p := c.TxPipeline()
	for _, v := range k.Value {
		field, err := decode(v.Field)
		if err != nil {
			return err
		}
		text, err := decode(v.Text)
		if err != nil {
			return err
		}
		text = moved(text)
		switch k.Type {
		case "string":
			p.Set(ctx, name, text, 0)
		case "hash":
			p.HSet(ctx, name, field, text)
		case "list":
			p.RPush(ctx, name, text)
		case "set":
			p.SAdd(ctx, name, text)
		case "zset":
			p.ZAdd(ctx, name, redis.Z{Member: text, Score: v.Score})
		}
	}
	if k.TTL > 0 {
		p.PExpire(ctx, name, time.Duration(k.TTL)*time.Millisecond)
	}
	_, err = p.Exec(ctx)
	return err
}
