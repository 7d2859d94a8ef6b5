
if redis.call('GET', KEYS[2]) ~= ARGV[3] or get('state') == '' then return {'epoch'} end
if over() or get('fence') ~= ARGV[2] then return {'fenced'} end
for i, f in ipairs({'bytes_done', 'bytes_total', 'rate'}) do
  if ARGV[3 + i] ~= '' then redis.call('HSET', run, f, ARGV[3 + i]) end
end
redis.call('HSET', run, 'updated', now)
if get('cancel') == '1' and get('ending') == '' and get('committed') ~= '1' then return {'cancel'} end
return {'ok'}