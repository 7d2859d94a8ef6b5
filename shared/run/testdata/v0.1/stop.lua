
if over() or (ARGV[2] ~= '' and get('generation') ~= ARGV[2]) then return {'stale'} end
if get('ending') ~= '' and ARGV[6] ~= '1' then return {'stale'} end
close_attempt(ARGV[3] == 'cancelled' and 'cancelled' or 'error', ARGV[4])
if get('node') == '' or ARGV[6] == '1' then
  local ending = get('ending')
  if ending == '' then ending = ARGV[3]; set('error', ARGV[4]) end
  set('fence', num('fence') + 1, 'generation', num('generation') + 1)
  finish(ending, KEYS[2], KEYS[3], ARGV[5])
  return {'closed'}
end
to_cleanup(ARGV[3], ARGV[4])
return {'cleanup', get('generation')}