package run

import "github.com/redis/go-redis/v9"

// Every change of a run record is one of these scripts, so that it is atomic and
// depends on what the record says at that moment. KEYS[1] is always the run's
// hash, ARGV[1] the time now; empty, as in the programs, it is Redis's own, since the
// hosts' clocks differ. Those that end runs have the totals of the instance (totals.go)
// as KEYS[4]. Each returns an array of strings, the first of which says what happened.

// start: KEYS run, lock, open, runs, epoch, instances, tick; ARGV now, id, instance, requested, type,
// first stage, new epoch, keep (s), tick (” = none). Takes the lock and writes the record.
// → ok, epoch | again, id of the run that this tick opened before | busy, id of the run that holds the lock | exists
var startScript = redis.NewScript(prelude + `
for i, kind in ipairs({'string', 'set', 'zset', 'string', 'set', 'string'}) do typed(KEYS[i + 1], kind) end
if ARGV[9] ~= '' then
  local opened = redis.call('GET', KEYS[7])
  if opened then return {'again', opened} end
end
redis.call('SET', KEYS[5], ARGV[7], 'NX')
local holder = redis.call('GET', KEYS[2])
if holder then return {'busy', holder} end
if redis.call('EXISTS', run) == 1 then return {'exists'} end
local other = still_open(KEYS[2], KEYS[3], KEYS[4])
if other then return {'busy', other} end
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

// claim: KEYS run; ARGV now, stage, generation, node, limit of a run that has none yet (ms), token. The caller
// holds the flock on the run's staging, so an attempt before it that is open in the record is dead.
// → ok, fence | stale (another generation or stage, or the run is over) | elsewhere, node
// | claimed (an attempt took this generation before; it is dead, since we hold its lock) | cancel
var claimScript = redis.NewScript(prelude + `
if over() or get('stage') ~= ARGV[2] or not current(ARGV[3]) then return {'stale'} end
local node = get('node')
if node ~= '' and node ~= ARGV[4] then return {'elsewhere', node} end
if whole(get('generation')) and get('claimed') == ARGV[3] then return {'claimed'} end
if cancelling() then return {'cancel'} end
close_attempts('interrupted', 'another attempt took the place of this one, which had not told how it ended')
raise()
local fence, attempt = fence(), num('attempt') + 1
-- A time later than now is of a clock that was ahead and was set back: limits would last until then.
for _, f in ipairs({'created', 'started'}) do
  if not reached(get(f)) then set(f, true_now) end
end
-- The limit is that of the first claim, also where this worker has another, and runs from there: a deadline
-- that is further away is none.
local limit = num('limit')
if limit == 0 or limit > ` + longestLimit + ` then limit = ARGV[5]; set('limit', limit) end
local ends, most = seconds(get('deadline')), later(true_now, limit)
if not ends or ends > seconds(most) then set('deadline', most) end
set('state', 'running', 'generation', ARGV[3], 'claimed', ARGV[3], 'attempt', attempt, 'node', ARGV[4], 'holder', string.format('%.0f-%s', fence, ARGV[6]),
  string.format('attempt:%.0f', fence), cjson.encode({stage = ARGV[2], attempt = attempt, node = ARGV[4], started = now, ended = cjson.null, outcome = cjson.null, error = cjson.null}))
redis.call('HDEL', run, 'not_before', 'bytes_done', 'bytes_total', 'rate')
return {'ok', string.format('%.0f', fence)}`)

// progress: KEYS run, epoch; ARGV now, fence, token, epoch, done, total, rate. ” leaves a number unknown.
// → ok | cancel | fenced | epoch
var progressScript = redis.NewScript(prelude + `
if redis.pcall('GET', KEYS[2]) ~= ARGV[4] or state() == '' then return {'epoch'} end
if over() or not held(ARGV[2], ARGV[3]) then return {'fenced'} end
for i, f in ipairs({'bytes_done', 'bytes_total', 'rate'}) do
  if ARGV[4 + i] ~= '' then redis.call('HSET', run, f, ARGV[4 + i]) end
end
redis.call('HSET', run, 'updated', now)
if cancelling() then return {'cancel'} end
return {'ok'}`)

// holds: KEYS run, epoch; ARGV now, fence, token, epoch, commit ('1' or ”). Asked before every
// effect outside staging; with commit it also closes the door to a cancel.
// → ok | cancel | fenced | epoch
var holdsScript = redis.NewScript(prelude + `
if redis.pcall('GET', KEYS[2]) ~= ARGV[4] or state() == '' then return {'epoch'} end
if over() or not held(ARGV[2], ARGV[3]) then return {'fenced'} end
if cancelling() then return {'cancel'} end
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
if over() or get('stage') ~= ARGV[2] or not held(ARGV[3], ARGV[4]) or ending() ~= '' then return {'fenced'} end
if cancelling() then return {'cancel'} end
close_attempts('good', '')
set('result:' .. ARGV[2], ARGV[6], 'error', '')
if ARGV[5] == '' then finish('succeeded', KEYS[2], KEYS[3], ARGV[7]); return {'done'} end
reset_counters()
fresh_task(ARGV[5])
return {'ok', get('generation')}`)

// again: KEYS run, lock, open, totals; ARGV now, stage, generation, fence, token, kind (error | interrupted | crashed),
// error text, budget, wait before the next try (ms), permanent ('1'). The attempt of this generation, which has or had
// this fence and token, is over; try again, or give up.
// → again, generation | cleanup, generation | cancel | stale
var againScript = redis.NewScript(prelude + `
if over() or get('stage') ~= ARGV[2] or not current(ARGV[3]) or not held(ARGV[4], ARGV[5]) then return {'stale'} end
local field = ({error = 'errors', interrupted = 'interruptions', crashed = 'crashes'})[ARGV[6]]
if cancelling() then return {'cancel'} end
close_attempts(ARGV[6], ARGV[7])
local n = num(field) + 1
set(field, n)
if ending() == '' and (ARGV[10] == '1' or n > tonumber(ARGV[8])) then
  to_cleanup('failed', ARGV[7])
  return {'cleanup', get('generation')}
end
if ARGV[7] ~= '' and ending() == '' then set('error', ARGV[7]) end
redis.call('HDEL', run, 'committed') -- the next attempt asks for leave again
count_retry(ARGV[2], ARGV[6])
fresh_task(ARGV[2])
if tonumber(ARGV[9]) > 0 then set('not_before', later(true_now, ARGV[9])) end
return {'again', get('generation')}`)

// stop: KEYS run, lock, open, totals; ARGV now, generation (” = any), fence, token (of that generation, as it was read),
// ending (failed | cancelled), error text, keep (s), force ('1' = close without a cleanup: the node is lost, the cleanup
// does not end, or a person says so). Ends an open run. One that was ending keeps its error, and gets this one besides.
// → cleanup, generation | closed | stale
var stopScript = redis.NewScript(prelude + `
if over() or (ARGV[2] ~= '' and not (current(ARGV[2]) and held(ARGV[3], ARGV[4]))) then return {'stale'} end
local before, why = ending(), ARGV[6]
if before ~= '' and ARGV[8] ~= '1' then return {'stale'} end
close_attempts(ARGV[5] == 'cancelled' and 'cancelled' or 'error', why)
if get('node') == '' or ARGV[8] == '1' then
  if before ~= '' and get('error') ~= '' then why = get('error') .. '; ' .. why end
  raise()
  set('error', why, 'generation', num('generation') + 1)
  finish(before == 'failed' and before or ARGV[5], KEYS[2], KEYS[3], ARGV[7])
  return {'closed'}
end
to_cleanup(ARGV[5], why)
return {'cleanup', get('generation')}`)

// cleaned: KEYS run, lock, open, totals; ARGV now, fence, token, keep (s), stands ('1' = the set was complete
// after all). The cleanup is over: the run ends.
// → closed | fenced
var cleanedScript = redis.NewScript(prelude + `
if over() or get('stage') ~= 'cleanup' or not held(ARGV[2], ARGV[3]) then return {'fenced'} end
close_attempts('good', '')
local how = ending()
set('cleanups', num('cleanups') + 1)
if ARGV[5] == '1' then how = 'succeeded'; set('error', '') end
finish(how == '' and 'failed' or how, KEYS[2], KEYS[3], ARGV[4])
return {'closed'}`)

// cancel: KEYS run, lock, open, totals; ARGV now, keep (s). Somebody wants the run to stop.
// → closed (nobody had begun it) | asked | late (committed) | over, state
var cancelScript = redis.NewScript(prelude + `
if over() then return {'over', state()} end
if get('committed') == '1' then return {'late'} end
if get('node') == '' and num('claimed') == 0 and ending() == '' then
  raise()
  set('generation', num('generation') + 1, 'cancel', '1')
  finish('cancelled', KEYS[2], KEYS[3], ARGV[2])
  return {'closed'}
end
set('cancel', '1')
if not reached(get('cancel_since')) then set('cancel_since', true_now) end -- who asks twice does not wait longer
return {'asked'}`)

// anew: KEYS run; ARGV now, generation. The task of this generation is gone or completed without effect: make a new
// one. An attempt that had taken the old one may live, and then goes on; the claim of the new one closes it.
// → again, generation | stale
var anewScript = redis.NewScript(prelude + `
if over() or not current(ARGV[2]) then return {'stale'} end
local nb = get('not_before')
fresh_task(get('stage'))
if nb ~= '' then set('not_before', nb) end
return {'again', get('generation')}`)

// release frees the instance's lock when the run that holds it is over or has no record,
// and puts right what an odd hand did to the lock and to the set of open runs.
// KEYS run (of the holder), lock, open, runs; ARGV now, id. → freed | held
var releaseScript = redis.NewScript(prelude + `
for i, kind in ipairs({'string', 'set', 'zset'}) do typed(KEYS[i + 1], kind) end
if redis.call('GET', KEYS[2]) == ARGV[2] then
  if not over() then
    redis.call('SADD', KEYS[3], id)
    return {'held'}
  end
  redis.call('DEL', KEYS[2])
  redis.call('SREM', KEYS[3], ARGV[2])
end
return {still_open(KEYS[2], KEYS[3], KEYS[4]) and 'held' or 'freed'}`)

// epoch: KEYS epoch; ARGV new epoch. → the epoch, made when there is none
var epochScript = redis.NewScript(typed + `
typed(KEYS[1], 'string')
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('GET', KEYS[1])`)

// sign: KEYS instances, workers, nodes, sets, worker; ARGV instance, worker's id, node, time, what it says of itself,
// for how long (ms). A worker shows that it lives.
var signScript = redis.NewScript(typed + `
for i, kind in ipairs({'set', 'set', 'hash', 'hash'}) do typed(KEYS[i], kind) end
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
redis.call('SET', KEYS[5], ARGV[5], 'PX', ARGV[6])
return 'ok'`)

// workers: KEYS workers; ARGV prefix of workers' keys, how long a sign counts (ms). → what the live ones say of
// themselves. Those that give no sign any more are taken out.
var workersScript = redis.NewScript(typed + `
typed(KEYS[1], 'set')
local live = {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local key = ARGV[1] .. id
  typed(key, 'string')
  if lasts(key, tonumber(ARGV[2])) > 0 then live[#live + 1] = redis.call('GET', key)
  else redis.pcall('SREM', KEYS[1], id) end
end
return live`)

// lasts: KEYS key; ARGV how long it lives at most (ms). → for how long it lives yet (ms)
var lastsScript = redis.NewScript(typed + `return lasts(KEYS[1], tonumber(ARGV[1]))`)

// lead: KEYS leader; ARGV worker, for how long (ms). → 1, or 0 where another worker leads
var leadScript = redis.NewScript(typed + `
typed(KEYS[1], 'string')
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] and lasts(KEYS[1], tonumber(ARGV[2])) > 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`)

// nodeSeen: KEYS nodes; ARGV now, node. → the node's last sign, ” if there is none
var nodeSeenScript = redis.NewScript(clock + `
local at, now = redis.pcall('HGET', KEYS[1], ARGV[2]), the_time(ARGV[1])
if type(at) ~= 'string' then return {''} end
if not seconds(at) or seconds(at) <= seconds(now) then return {at} end
redis.pcall('HSET', KEYS[1], ARGV[2], now)
return {now}`)

// reopen: KEYS run, lock, open; ARGV now. An open run that is missing in the set of them is put back into it.
// → known | beside, id of the run that has the lock
var reopenScript = redis.NewScript(prelude + `
typed(KEYS[2], 'string')
typed(KEYS[3], 'set')
if over() or redis.call('SADD', KEYS[3], id) == 0 then return {'known'} end
if redis.call('SET', KEYS[2], id, 'NX') or redis.call('GET', KEYS[2]) == id then return {'known'} end
return {'beside', redis.call('GET', KEYS[2])}`)
