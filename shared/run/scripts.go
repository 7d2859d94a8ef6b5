package run

import "github.com/redis/go-redis/v9"

// Every change of a run record is one of these scripts, so that it is atomic and
// depends on what the record says at that moment. KEYS[1] is always the run's
// hash, ARGV[1] the time now; empty, as in the programs, it is Redis's own, since the
// hosts' clocks differ. Those that end attempts or runs have the
// totals of the instance (totals.go) as KEYS[4]. Each returns an array of strings, the first
// of which says what happened.

// prelude is put before every script.
var prelude = `
local run = KEYS[1]
local function get(f) return redis.call('HGET', run, f) or '' end
local function num(f) return tonumber(get(f)) or 0 end
` + clock + `
local now = the_time(ARGV[1], get('updated'))
` + counting + `
local function set(...) redis.call('HSET', run, 'updated', now, ...) end
local function over() local s = get('state'); return s ~= 'queued' and s ~= 'running' end
-- held: does the attempt with this fence and token still have the run? An earlier version knew no token.
local function held(fence, token)
  return get('fence') == fence and (token == '' or get('holder') == fence .. '-' .. token)
end
local function close_attempt(outcome, err)
  local f = 'attempt:' .. get('fence')
  local a = redis.call('HGET', run, f)
  if not a then return end
  a = cjson.decode(a)
  if a.outcome ~= cjson.null and a.outcome ~= nil then return end
  a.ended = now; a.outcome = outcome
  if err ~= '' then a.error = err else a.error = cjson.null end
  redis.call('HSET', run, f, cjson.encode(a))
  count_attempt(a)
end
-- fresh_task makes a new task of stage s the only one that counts.
local function fresh_task(s)
  set('stage', s, 'generation', num('generation') + 1, 'claimed', 0)
  -- Nobody works now: a rate and a time left would be untrue.
  redis.call('HDEL', run, 'not_before', 'bytes_done', 'bytes_total', 'rate')
end
local function reset_counters()
  set('errors', 0, 'crashes', 0, 'interruptions', 0, 'attempt', 0)
end
-- finish ends the run: state, lock and the set of open runs change together.
local function finish(state, lock, open, keep)
  set('state', state, 'ended', now, 'ending', '')
  redis.call('HDEL', run, 'not_before')
  local id = get('id')
  if redis.call('GET', lock) == id then redis.call('DEL', lock) end
  redis.call('SREM', open, id)
  redis.call('EXPIRE', run, keep)
  count_run(state)
end
-- to_cleanup makes an open run end as ending. The fence grows, so that an attempt that still runs may touch nothing more.
local function to_cleanup(ending, err)
  set('ending', ending, 'ending_since', now, 'error', err, 'fence', num('fence') + 1, 'state', 'running')
  reset_counters()
  fresh_task('cleanup')
end
`

// start: KEYS run, lock, open, runs, epoch, instances, tick; ARGV now, id, instance, requested, type,
// first stage, new epoch, keep (s), tick (” = none). Takes the lock and writes the record.
// → ok, epoch | again, id of the run that this tick opened before | busy, id of the run that holds the lock | exists
var startScript = redis.NewScript(prelude + `
if ARGV[9] ~= '' then
  local opened = redis.call('GET', KEYS[7])
  if opened then return {'again', opened} end
end
redis.call('SET', KEYS[5], ARGV[7], 'NX')
local holder = redis.call('GET', KEYS[2])
if holder then return {'busy', holder} end
if redis.call('EXISTS', run) == 1 then return {'exists'} end
local epoch = redis.call('GET', KEYS[5])
redis.call('SET', KEYS[2], ARGV[2])
redis.call('HSET', run, 'id', ARGV[2], 'instance', ARGV[3], 'requested', ARGV[4], 'type', ARGV[5], 'stage', ARGV[6],
  'state', 'queued', 'generation', 1, 'claimed', 0, 'fence', 0, 'attempt', 0, 'errors', 0, 'crashes', 0,
  'interruptions', 0, 'cleanups', 0, 'ending', '', 'node', '', 'error', '', 'epoch', epoch, 'created', now, 'updated', now,
  'tick', ARGV[9])
if ARGV[9] ~= '' then redis.call('SET', KEYS[7], ARGV[2], 'EX', ARGV[8]) end
local score = math.floor(seconds(now) * 1000)
redis.call('SADD', KEYS[6], ARGV[3])
redis.call('SADD', KEYS[3], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', score - tonumber(ARGV[8]) * 1000)
redis.call('ZADD', KEYS[4], score, ARGV[2])
return {'ok', epoch}`)

// claim: KEYS run; ARGV now, stage, generation, node, limit of the run (ms), token. The caller
// holds the flock on the run's staging.
// → ok, fence | stale (another generation or stage, or the run is over) | elsewhere, node
// | claimed (an attempt took this generation before; it is dead, since we hold its lock) | cancel
var claimScript = redis.NewScript(prelude + `
if over() or get('stage') ~= ARGV[2] or get('generation') ~= ARGV[3] then return {'stale'} end
local node = get('node')
if node ~= '' and node ~= ARGV[4] then return {'elsewhere', node} end
if get('claimed') == ARGV[3] then return {'claimed'} end
if get('cancel') == '1' and get('ending') == '' and get('committed') ~= '1' then return {'cancel'} end
local fence = num('fence') + 1
local attempt = num('attempt') + 1
if get('started') == '' then set('started', now, 'deadline', later(now, ARGV[5])) end
set('state', 'running', 'fence', fence, 'claimed', ARGV[3], 'attempt', attempt, 'node', ARGV[4], 'holder', fence .. '-' .. ARGV[6],
  'attempt:' .. fence, cjson.encode({stage = ARGV[2], attempt = attempt, node = ARGV[4], started = now, ended = cjson.null, outcome = cjson.null, error = cjson.null}))
redis.call('HDEL', run, 'not_before', 'bytes_done', 'bytes_total', 'rate')
return {'ok', tostring(fence)}`)

// progress: KEYS run, epoch; ARGV now, fence, token, epoch, done, total, rate. ” leaves a number unknown.
// → ok | cancel | fenced | epoch
var progressScript = redis.NewScript(prelude + `
if redis.call('GET', KEYS[2]) ~= ARGV[4] or get('state') == '' then return {'epoch'} end
if over() or not held(ARGV[2], ARGV[3]) then return {'fenced'} end
for i, f in ipairs({'bytes_done', 'bytes_total', 'rate'}) do
  if ARGV[4 + i] ~= '' then redis.call('HSET', run, f, ARGV[4 + i]) end
end
redis.call('HSET', run, 'updated', now)
if get('cancel') == '1' and get('ending') == '' and get('committed') ~= '1' then return {'cancel'} end
return {'ok'}`)

// holds: KEYS run, epoch; ARGV now, fence, token, epoch, commit ('1' or ”). Asked before every
// effect outside staging; with commit it also closes the door to a cancel.
// → ok | cancel | fenced | epoch
var holdsScript = redis.NewScript(prelude + `
if redis.call('GET', KEYS[2]) ~= ARGV[4] or get('state') == '' then return {'epoch'} end
if over() or not held(ARGV[2], ARGV[3]) then return {'fenced'} end
if get('cancel') == '1' and get('ending') == '' and get('committed') ~= '1' then return {'cancel'} end
if ARGV[5] == '1' then set('committed', '1') end
return {'ok'}`)

// note: KEYS run; ARGV now, fence, token, field, value … Writes facts of the run that the attempt found out.
// → ok | fenced
var noteScript = redis.NewScript(prelude + `
if over() or not held(ARGV[2], ARGV[3]) then return {'fenced'} end
for i = 4, #ARGV, 2 do redis.call('HSET', run, ARGV[i], ARGV[i + 1]) end
return {'ok'}`)

// advance: KEYS run, lock, open, totals; ARGV now, stage, fence, token, next stage (” = the run is done), result, keep (s).
// → ok, generation | done | cancel | fenced
var advanceScript = redis.NewScript(prelude + `
if over() or get('stage') ~= ARGV[2] or not held(ARGV[3], ARGV[4]) or get('ending') ~= '' then return {'fenced'} end
if get('cancel') == '1' and get('committed') ~= '1' then return {'cancel'} end
close_attempt('good', '')
set('result:' .. ARGV[2], ARGV[6], 'error', '')
if ARGV[5] == '' then finish('succeeded', KEYS[2], KEYS[3], ARGV[7]); return {'done'} end
reset_counters()
fresh_task(ARGV[5])
return {'ok', get('generation')}`)

// again: KEYS run, lock, open, totals; ARGV now, stage, generation, kind (error | interrupted | crashed), error text,
// budget, wait before the next try (ms), permanent ('1'). The attempt of this generation is over; try again, or give up.
// → again, generation | cleanup, generation | cancel | stale
var againScript = redis.NewScript(prelude + `
if over() or get('stage') ~= ARGV[2] or get('generation') ~= ARGV[3] then return {'stale'} end
local field = ({error = 'errors', interrupted = 'interruptions', crashed = 'crashes'})[ARGV[4]]
if get('cancel') == '1' and get('ending') == '' and get('committed') ~= '1' then return {'cancel'} end
close_attempt(ARGV[4], ARGV[5])
local n = redis.call('HINCRBY', run, field, 1)
if get('ending') == '' and (ARGV[8] == '1' or n > tonumber(ARGV[6])) then
  to_cleanup('failed', ARGV[5])
  return {'cleanup', get('generation')}
end
if ARGV[5] ~= '' and get('ending') == '' then set('error', ARGV[5]) end
redis.call('HDEL', run, 'committed') -- the next attempt asks for leave again
count_retry(ARGV[2], ARGV[4])
fresh_task(ARGV[2])
if tonumber(ARGV[7]) > 0 then set('not_before', later(now, ARGV[7])) end
return {'again', get('generation')}`)

// stop: KEYS run, lock, open, totals; ARGV now, generation (” = any), ending (failed | cancelled), error text, keep (s),
// force ('1' = close without a cleanup: the node is lost). Ends an open run.
// → cleanup, generation | closed | stale
var stopScript = redis.NewScript(prelude + `
if over() or (ARGV[2] ~= '' and get('generation') ~= ARGV[2]) then return {'stale'} end
if get('ending') ~= '' and ARGV[6] ~= '1' then return {'stale'} end
close_attempt(ARGV[3] == 'cancelled' and 'cancelled' or 'error', ARGV[4])
if get('node') == '' or ARGV[6] == '1' then
  local ending = get('ending')
  if ending == '' then ending = ARGV[3]; set('error', ARGV[4]) end
  set('fence', num('fence') + 1, 'generation', num('generation') + 1)
  finish(ending, KEYS[2], KEYS[3], ARGV[5])
  return {'closed'}
end
to_cleanup(ARGV[3], ARGV[4])
return {'cleanup', get('generation')}`)

// cleaned: KEYS run, lock, open, totals; ARGV now, fence, token, keep (s), stands ('1' = the set was complete
// after all). The cleanup is over: the run ends.
// → closed | fenced
var cleanedScript = redis.NewScript(prelude + `
if over() or get('stage') ~= 'cleanup' or not held(ARGV[2], ARGV[3]) then return {'fenced'} end
close_attempt('good', '')
redis.call('HINCRBY', run, 'cleanups', 1)
local ending = get('ending')
if ARGV[5] == '1' then ending = 'succeeded'; set('error', '') end
finish(ending, KEYS[2], KEYS[3], ARGV[4])
return {'closed'}`)

// cancel: KEYS run, lock, open, totals; ARGV now, keep (s). Somebody wants the run to stop.
// → closed (nobody had begun it) | asked | late (committed) | over, state
var cancelScript = redis.NewScript(prelude + `
if over() then return {'over', get('state')} end
if get('committed') == '1' then return {'late'} end
if get('ending') ~= '' then set('cancel', '1', 'cancel_since', now); return {'asked'} end
if get('node') == '' and get('claimed') == '0' then
  set('fence', num('fence') + 1, 'generation', num('generation') + 1, 'cancel', '1')
  finish('cancelled', KEYS[2], KEYS[3], ARGV[2])
  return {'closed'}
end
set('cancel', '1', 'cancel_since', now)
return {'asked'}`)

// anew: KEYS run; ARGV now, generation. The task of this generation is gone or completed without effect: make a new one.
// → again, generation | stale
var anewScript = redis.NewScript(prelude + `
if over() or get('generation') ~= ARGV[2] then return {'stale'} end
local nb = get('not_before')
fresh_task(get('stage'))
if nb ~= '' then set('not_before', nb) end
return {'again', get('generation')}`)

// release frees the instance's lock when the run that holds it is over or has no record.
// KEYS run (of the holder), lock, open; ARGV now, id. → freed | held
var releaseScript = redis.NewScript(prelude + `
if redis.call('GET', KEYS[2]) ~= ARGV[2] then return {'held'} end
if get('state') ~= '' and not over() then return {'held'} end
redis.call('DEL', KEYS[2])
redis.call('SREM', KEYS[3], ARGV[2])
return {'freed'}`)
