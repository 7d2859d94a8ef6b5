
if over() or get('generation') ~= ARGV[2] then return {'stale'} end
local nb = get('not_before')
fresh_task(get('stage'))
if nb ~= '' then set('not_before', nb) end
return {'again', get('generation')}