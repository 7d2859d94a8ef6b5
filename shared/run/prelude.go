package run

// prelude is put before every script. No script fails on a field that an odd hand
// made of another shape: a run whose scripts fail never ends. parse.go reads such
// fields in the same way, and tells them.
var prelude = typed + `
local run = KEYS[1]
-- named is the id of a run's key, nil if it is none (ValidID)
local id_pattern = '^' .. string.rep('%d', 8) .. 't' .. string.rep('%d', 6) .. 'z%-' .. string.rep('[a-z2-7]', 8) .. '$'
local function named(key) return string.match(string.sub(key, #'` + keyPrefix + `run:' + 1), id_pattern) end
local id = named(run) or ''
-- get is a field's text, '' if there is none. A key of another type is no record.
local function get(f)
  local v = redis.pcall('HGET', run, f)
  return type(v) == 'string' and v or ''
end
-- whole is the number that a text has, nil if that is none
local function whole(v) return string.match(v, '^%d+$') and #v <= 14 and tonumber(v) or nil end
local function num(f) return whole(get(f)) or 0 end
` + clock + `
-- now is what is written, true_now what waits and limits are reckoned from
local true_now = the_time(ARGV[1])
local now = never_back(true_now, get('updated'))
-- reached: it is a time, and not one to come
local function reached(t) local s = seconds(t); return s and s <= seconds(true_now) end
` + counting + `
local function set(...) redis.call('HSET', run, 'updated', now, ...) end
-- state is '' without a record, and of what is no run. A word that is none counts as running until there is an end.
local function state()
  local s = named(run) and get('state') or ''
  if s == '' or s == 'queued' or s == 'running' or s == 'succeeded' or s == 'failed' or s == 'cancelled' then return s end
  return get('ended') == '' and 'running' or 'failed'
end
local function over() local s = state(); return s ~= 'queued' and s ~= 'running' end
-- ending: a run in its cleanup ends as failed or cancelled, and no other one is ending
local function ending()
  if get('stage') ~= 'cleanup' then return '' end
  return get('ending') == 'cancelled' and 'cancelled' or 'failed'
end
local function cancelling() return get('cancel') == '1' and ending() == '' and get('committed') ~= '1' end
local function current(generation) return num('generation') == tonumber(generation) end
local function attempt_fields()
  local out = {}
  for _, f in ipairs(redis.call('HKEYS', run)) do
    if string.match(f, '^attempt:%d+$') then out[#out + 1] = f end
  end
  return out
end
-- fence never falls: where its field is damaged, it is that of the last attempt
local function fence()
  local n = whole(get('fence'))
  if n then return n end
  n = whole(string.match(get('holder'), '^(%d+)-') or '') or 0
  for _, f in ipairs(attempt_fields()) do n = math.max(n, whole(string.sub(f, 9)) or 0) end
  return n
end
-- held: does the attempt with this fence and token still have the run? An earlier version knew no token.
local function held(f, token)
  if string.format('%.0f', fence()) ~= f then return false end
  local holder = get('holder')
  if token ~= '' then return holder == f .. '-' .. token end
  return string.sub(holder, 1, #f + 1) ~= f .. '-' or #holder == #f + 1
end
local function close(f, outcome, err)
  local ok, a = pcall(cjson.decode, redis.call('HGET', run, f) or '')
  if not ok or type(a) ~= 'table' or type(a.stage) ~= 'string' then return end
  if a.outcome ~= cjson.null and a.outcome ~= nil then return end
  a.ended = now; a.outcome = outcome
  if err ~= '' then a.error = err else a.error = cjson.null end
  local fit, text = pcall(cjson.encode, a)
  if not fit then return end
  redis.call('HSET', run, f, text)
  count_attempt(a)
end
-- close_attempts ends the current attempt, and any before it that nobody has closed.
local function close_attempts(outcome, err)
  local mine = string.format('attempt:%.0f', fence())
  for _, f in ipairs(attempt_fields()) do
    if f == mine then close(f, outcome, err)
    else close(f, 'interrupted', 'the run went on without this attempt, which had not told how it ended') end
  end
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
-- raise makes all attempts there were old ones
local function raise() set('fence', fence() + 1) end
-- finish ends the run: state, lock and the set of open runs change together.
local function finish(state, lock, open, keep)
  close_attempts('interrupted', 'the run ended without this attempt')
  set('state', state, 'ended', now, 'ending', '')
  redis.call('HDEL', run, 'not_before')
  if redis.pcall('GET', lock) == id then redis.call('DEL', lock) end
  redis.pcall('SREM', open, id)
  redis.call('EXPIRE', run, keep)
  count_run(state)
end
-- to_cleanup makes an open run end as how. The fence grows, so that an attempt that still runs may touch nothing more.
local function to_cleanup(how, err)
  raise()
  set('ending', how, 'ending_since', true_now, 'error', err, 'state', 'running')
  reset_counters()
  fresh_task('cleanup')
end
-- still_open drops the runs that are over or have no record from the set of open runs, and
-- gives one that is open. It has the lock, also where that went without it. One of the last runs
-- that is open is in the set, also where that went without it.
local function still_open(lock, open, runs)
  local found
  local function look(other)
    run = '` + keyPrefix + `run:' .. other
    if over() then redis.call('SREM', open, other) else redis.call('SADD', open, other); found = other end
  end
  for _, other in ipairs(redis.call('ZREVRANGE', runs, 0, 19)) do look(other) end
  for _, other in ipairs(redis.call('SMEMBERS', open)) do look(other) end
  run = KEYS[1]
  if found and not redis.call('GET', lock) then redis.call('SET', lock, found) end
  return found
end
`

// typed is the part of the prelude for the keys beside the record.
const typed = `
-- typed drops a key that an odd hand made of another type: it would refuse every run for ever.
local function typed(key, kind)
  local t = redis.call('TYPE', key).ok
  if t ~= 'none' and t ~= kind then redis.call('DEL', key) end
end
-- lasts is for how many ms a key lives yet, ms at most. Redis keeps the moment of its end: where a
-- clock that was ahead, or an odd hand, set that later, or none, it is set anew.
local function lasts(key, ms)
  local left = redis.call('PTTL', key)
  if left >= 0 and left <= ms then return left end
  if left == -2 then return 0 end
  redis.pcall('PEXPIRE', key, ms)
  return ms
end
`
