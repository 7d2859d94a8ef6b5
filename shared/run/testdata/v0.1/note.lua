
if over() or get('fence') ~= ARGV[2] then return {'fenced'} end
for i = 3, #ARGV, 2 do redis.call('HSET', run, ARGV[i], ARGV[i + 1]) end
return {'ok'}