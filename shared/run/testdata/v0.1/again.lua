
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
if ARGV[7] ~= '' then set('not_before', ARGV[7]) end
return {'again', get('generation')}