
if over() or get('stage') ~= ARGV[2] or get('generation') ~= ARGV[3] then return {'stale'} end
local node = get('node')
if node ~= '' and node ~= ARGV[4] then return {'elsewhere', node} end
if get('claimed') == ARGV[3] then return {'claimed'} end
if get('cancel') == '1' and get('ending') == '' and get('committed') ~= '1' then return {'cancel'} end
local fence = num('fence') + 1
local attempt = num('attempt') + 1
if get('started') == '' then set('started', now, 'deadline', ARGV[5]) end
set('state', 'running', 'fence', fence, 'claimed', ARGV[3], 'attempt', attempt, 'node', ARGV[4],
  'attempt:' .. fence, cjson.encode({stage = ARGV[2], attempt = attempt, node = ARGV[4], started = now, ended = cjson.null, outcome = cjson.null, error = cjson.null}))
redis.call('HDEL', run, 'not_before', 'bytes_done', 'bytes_total', 'rate')
return {'ok', tostring(fence)}