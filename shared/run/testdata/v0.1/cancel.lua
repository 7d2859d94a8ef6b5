
if over() then return {'over', get('state')} end
if get('committed') == '1' then return {'late'} end
if get('ending') ~= '' then set('cancel', '1'); return {'asked'} end
if get('node') == '' and get('claimed') == '0' then
  set('fence', num('fence') + 1, 'generation', num('generation') + 1, 'cancel', '1')
  finish('cancelled', KEYS[2], KEYS[3], ARGV[2])
  return {'closed'}
end
set('cancel', '1')
return {'asked'}