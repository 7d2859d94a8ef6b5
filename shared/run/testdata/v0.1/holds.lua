
if redis.call('GET', KEYS[2]) ~= ARGV[3] or get('state') == '' then return {'epoch'} end
if over() or get('fence') ~= ARGV[2] then return {'fenced'} end
if get('cancel') == '1' and get('ending') == '' and get('committed') ~= '1' then return {'cancel'} end
if ARGV[4] == '1' then set('committed', '1') end
return {'ok'}