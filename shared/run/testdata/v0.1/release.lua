
if redis.call('GET', KEYS[2]) ~= ARGV[2] then return {'held'} end
if get('state') ~= '' and not over() then return {'held'} end
redis.call('DEL', KEYS[2])
redis.call('SREM', KEYS[3], ARGV[2])
return {'freed'}