package run

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// earlier is a script of the version before tokens, as its worker sends it.
func (b *bench) earlier(name string, keys []string, args ...any) []string {
	b.t.Helper()
	text := ""
	for _, part := range []string{"prelude", name} {
		t, err := os.ReadFile(filepath.Join("testdata", "v0.1", part+".lua"))
		require.NoError(b.t, err)
		text += string(t)
	}
	out, err := redis.NewScript(text).Run(ctx, b.rdb, keys, append([]any{stamp(b.clock)}, args...)...).StringSlice()
	require.NoError(b.t, err)
	return out
}

// earlierClaim is the claim of a worker that knows no token.
func (b *bench) earlierClaim(r Record) Record {
	b.t.Helper()
	r = b.reload(r)
	out := b.earlier("claim", []string{runKey(r.ID)}, r.Stage, r.Generation, "host1", stamp(b.clock.Add(6*time.Hour)))
	require.Equal(b.t, "ok", out[0])
	return b.reload(r)
}

// rollBack brings the record back to what it said earlier, as a failover does that lost writes.
func (b *bench) rollBack(r Record, to map[string]string) {
	b.t.Helper()
	require.NoError(b.t, b.rdb.Del(ctx, runKey(r.ID)).Err())
	require.NoError(b.t, b.rdb.HSet(ctx, runKey(r.ID), to).Err())
}

// After a failover that lost writes the same fence is given a second time. The token
// tells the two attempts apart in every script, also where the second one's worker is of
// an earlier version and knows none.
func TestASecondAttemptWithTheSameFence(t *testing.T) {
	claims := map[string]func(b *bench, r Record) Record{
		"of this version": func(b *bench, r Record) Record {
			c, err := b.Claim(ctx, r.ID, r.Stage, r.Generation, "host1", "token777", time.Hour)
			require.NoError(b.t, err)
			require.Equal(b.t, "ok", c.Kind)
			return b.reload(r)
		},
		"of an earlier version": (*bench).earlierClaim,
	}
	for name, claim := range claims {
		for at, begin := range map[string]func(b *bench) Record{"stage": func(b *bench) Record { return between(b) }, "cleanup": func(b *bench) Record {
			r := cleaning(b)
			n, err := b.Again(ctx, r, r.Stage, r.Generation, Retry{Kind: Erred, Error: "e", Budget: 3})
			require.NoError(b.t, err)
			require.Equal(b.t, "again", n.Kind)
			return b.reload(r)
		}} {
			t.Run(name+", at a "+at, func(t *testing.T) {
				b := newBench(t)
				r := begin(b)
				before := b.snapshot(r)
				first := b.claim(r)
				b.rollBack(r, before)
				second := claim(b, r)
				require.Equal(t, first.Fence, second.Fence, "what the token is for")
				require.NotEqual(t, first.Hold(), second.Hold())

				as := b.snapshot(r)
				one := int64(1)
				require.ErrorIs(t, b.Progress(ctx, r.ID, first.Hold(), r.Epoch, &one, &one, &one), ErrFenced)
				require.ErrorIs(t, b.Holds(ctx, r.ID, first.Hold(), r.Epoch, true), ErrFenced)
				require.ErrorIs(t, b.Note(ctx, r.ID, first.Hold(), Facts{Set: "x"}), ErrFenced)
				_, err := b.Advance(ctx, first, r.Stage, first.Hold(), "", "x")
				require.ErrorIs(t, err, ErrFenced)
				require.ErrorIs(t, b.Cleaned(ctx, first, first.Hold(), true), ErrFenced)
				n, err := b.Again(ctx, first, r.Stage, first.Generation, Retry{Kind: Erred, Error: "e", Permanent: true})
				require.NoError(t, err)
				require.Equal(t, "stale", n.Kind)
				n, err = b.Stop(ctx, first, first.Generation, Failed, "e", true)
				require.NoError(t, err)
				require.Equal(t, "stale", n.Kind)
				require.Equal(t, as, b.snapshot(r), "the first changed nothing")

				require.NoError(t, b.Progress(ctx, r.ID, second.Hold(), r.Epoch, nil, nil, nil))
				if at == "cleanup" {
					require.NoError(t, b.Cleaned(ctx, second, second.Hold(), false))
				} else {
					b.advance(second, "")
				}
				require.Empty(t, b.locked())
			})
		}
	}
}

// Workers of both versions take one run's stages in turn.
func TestAnEarlierVersionBeside(t *testing.T) {
	for name, order := range map[string][2]func(*bench, Record) Record{
		"the earlier one first": {(*bench).earlierClaim, (*bench).claim},
		"the earlier one after": {(*bench).claim, (*bench).earlierClaim},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			first := order[0](b, b.begin())
			require.NoError(t, b.Holds(ctx, first.ID, first.Hold(), first.Epoch, false))
			_, err := b.Again(ctx, first, first.Stage, first.Generation, Retry{Kind: Crashed, Error: "died", Budget: 3})
			require.NoError(t, err)
			second := order[1](b, first)
			require.Greater(t, second.Fence, first.Fence)
			require.ErrorIs(t, b.Holds(ctx, first.ID, first.Hold(), first.Epoch, false), ErrFenced)
			require.Equal(t, []string{"fenced"}, b.earlier("holds", []string{runKey(first.ID), epochKey}, first.Fence, first.Epoch, ""))
			require.NoError(t, b.Holds(ctx, second.ID, second.Hold(), second.Epoch, false))
			require.Equal(t, []string{"ok"}, b.earlier("holds", []string{runKey(first.ID), epochKey}, second.Fence, second.Epoch, ""))
			out := b.earlier("advance", b.keys(second), second.Stage, second.Fence, "postgres", "prepare.2", 3600)
			require.Equal(t, "ok", out[0])
			r := b.advance(b.claim(second), "")
			require.Equal(t, Succeeded, r.State)
			noneOpen(t, b, r)
		})
	}
}

func TestAnAttemptThatAnewReplacedIsClosed(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	b.clock = b.clock.Add(time.Minute)
	_, err := b.Anew(ctx, r, r.Generation)
	require.NoError(t, err)
	require.NoError(t, b.Holds(ctx, r.ID, r.Hold(), r.Epoch, false), "one that lives is not thrown away for a task that came twice")
	next := b.claim(r) // under the lock: the other is dead
	require.Len(t, next.Attempts, 2)
	require.Equal(t, Interrupted, *next.Attempts[0].Outcome)
	require.Equal(t, b.clock, *next.Attempts[0].Ended)
	require.Contains(t, *next.Attempts[0].Error, "another attempt took the place")
	require.Nil(t, next.Attempts[1].Outcome)
	require.ErrorIs(t, b.Holds(ctx, r.ID, r.Hold(), r.Epoch, false), ErrFenced)
	require.Equal(t, int64(1), b.totals().Took[Ended{Prepare, Interrupted}].Count)
}

// Whatever is called in whatever order, by both versions: a run that is over has no open
// attempt, every attempt is counted once, and the run too.
func TestNoOpenAttemptInAnEndedRun(t *testing.T) {
	b := newBench(t)
	random := rand.New(rand.NewPCG(5, 6))
	pick := func(n int) bool { return random.IntN(n) == 0 }
	for range 150 {
		r := b.begin()
		known := []Record{r} // what somebody once read, and may act on late
		for range 25 {
			b.clock = b.clock.Add(time.Second)
			r = b.reload(r)
			known = append(known, r)
			old := known[random.IntN(len(known))]
			switch random.IntN(9) {
			case 0, 1, 2:
				must(b.Claim(ctx, r.ID, r.Stage, r.Generation, "host1", NewToken(), time.Hour))
			case 3:
				b.earlier("claim", []string{runKey(r.ID)}, r.Stage, r.Generation, "host1", stamp(b.clock))
			case 4:
				must(b.Anew(ctx, old, old.Generation))
			case 5:
				must(b.Again(ctx, old, old.Stage, old.Generation, Retry{Kind: []Outcome{Erred, Crashed, Interrupted}[random.IntN(3)], Error: "e", Budget: 2, Permanent: pick(9)}))
			case 6:
				_, _ = b.Advance(ctx, old, old.Stage, old.Hold(), map[bool]string{true: "", false: "archive"}[pick(3)], "x")
			case 7:
				if pick(2) {
					must(b.Stop(ctx, old, []int64{0, old.Generation}[random.IntN(2)], Cancelled, "s", pick(3)))
				} else {
					must(b.Cancel(ctx, old))
				}
			case 8:
				_ = b.Cleaned(ctx, old, old.Hold(), pick(2))
			}
		}
		must(b.Stop(ctx, r, 0, Failed, "the end", true))
		r = b.reload(r)
		require.True(t, r.State.Over())
		noneOpen(t, b, r)
		require.Empty(t, r.Odd)
		inOrder(t, Record{Created: r.Created, Started: r.Started, Ended: r.Ended, Updated: r.Updated})
		got, ran, tried := b.totals(), int64(0), int64(0)
		for _, n := range got.Runs {
			ran += n
		}
		for _, d := range got.Took {
			tried += d.Count
		}
		require.Equal(t, int64(1), ran)
		require.Equal(t, int64(len(r.Attempts)), tried)
		require.NoError(t, b.rdb.FlushDB(ctx).Err())
	}
}

func TestAHoldWithoutTokenIsNoneWhereThereIsOne(t *testing.T) {
	b := newBench(t)
	r := claimed(b)
	require.ErrorIs(t, b.Holds(ctx, r.ID, Hold{Fence: r.Fence}, r.Epoch, true), ErrFenced)
	require.NoError(t, b.Holds(ctx, r.ID, r.Hold(), r.Epoch, true))
}
