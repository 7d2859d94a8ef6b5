
local run = KEYS[1]
local now = ARGV[1]
local function get(f) return redis.call('HGET', run, f) or '' end
local function num(f) return tonumber(get(f)) or 0 end
local function set(...) redis.call('HSET', run, 'updated', now, ...) end
local function over() local s = get('state'); return s ~= 'queued' and s ~= 'running' end

-- Counting never stands in the way of the run: pcall, since an odd hand may have made the key of another type.
local function count(field, n) redis.pcall('HINCRBY', KEYS[4], field, n) end
-- seconds since 1970 of a time as Go writes it, in UTC; nil if it is none
local function seconds(t)
  local y, m, d, h, min, s = string.match(t or '', '^(%d+)-(%d+)-(%d+)T(%d+):(%d+):([%d.]+)Z$')
  if not y then return nil end
  y, m = tonumber(y), tonumber(m)
  if m <= 2 then y = y - 1; m = m + 12 end -- the year begins in March, so that a leap day is its last
  local days = 365 * y + math.floor(y / 4) - math.floor(y / 100) + math.floor(y / 400) + math.floor((153 * (m - 3) + 2) / 5) + d - 719469
  return days * 86400 + h * 3600 + min * 60 + s
end
local function count_attempt(a)
  local from, to = seconds(a.started), seconds(a.ended)
  if not from or not to or not a.stage then return end
  local took = math.max(0, to - from)
  local class = 'inf'
  for _, bound in ipairs({1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400}) do
    if took <= bound then class = tostring(bound); break end
  end
  local field = 'took:' .. a.stage .. ':' .. a.outcome .. ':'
  count(field .. class, 1)
  count(field .. 'ms', math.floor(took * 1000 + 0.5))
end
local function count_retry(stage, kind) count('retries:' .. stage .. ':' .. kind, 1) end
local function count_run(state)
  count('runs:' .. state, 1)
  redis.pcall('HSET', KEYS[4], 'last', state, 'last_ended', now)
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
  set('ending', ending, 'error', err, 'fence', num('fence') + 1, 'state', 'running')
  reset_counters()
  fresh_task('cleanup')
end
