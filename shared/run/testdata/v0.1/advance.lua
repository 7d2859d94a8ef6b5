
if over() or get('stage') ~= ARGV[2] or get('fence') ~= ARGV[3] or get('ending') ~= '' then return {'fenced'} end
if get('cancel') == '1' and get('committed') ~= '1' then return {'cancel'} end
close_attempt('good', '')
set('result:' .. ARGV[2], ARGV[5], 'error', '')
if ARGV[4] == '' then finish('succeeded', KEYS[2], KEYS[3], ARGV[6]); return {'done'} end
reset_counters()
fresh_task(ARGV[4])
return {'ok', get('generation')}