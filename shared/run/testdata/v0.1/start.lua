
if ARGV[10] ~= '' then
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
  'tick', ARGV[10])
if ARGV[10] ~= '' then redis.call('SET', KEYS[7], ARGV[2], 'EX', ARGV[9]) end
redis.call('SADD', KEYS[6], ARGV[3])
redis.call('SADD', KEYS[3], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', tonumber(ARGV[8]) - tonumber(ARGV[9]) * 1000)
redis.call('ZADD', KEYS[4], ARGV[8], ARGV[2])
return {'ok', epoch}