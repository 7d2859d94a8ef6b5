
if over() or get('stage') ~= 'cleanup' or get('fence') ~= ARGV[2] then return {'fenced'} end
close_attempt('good', '')
redis.call('HINCRBY', run, 'cleanups', 1)
local ending = get('ending')
if ARGV[4] == '1' then ending = 'succeeded'; set('error', '') end
finish(ending, KEYS[2], KEYS[3], ARGV[3])
return {'closed'}