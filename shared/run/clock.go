package run

// clock is the part of the scripts' prelude that tells and reckons with times. They
// are texts as time.RFC3339Nano reads them, in UTC, to the microsecond.
var clock = `
-- seconds since 1970 of a time, in UTC; nil if it is none
local function seconds(t)
  if type(t) ~= 'string' then return nil end
  local y, m, d, h, min, s, part = string.match(t, '^(%d%d%d%d)-(%d%d)-(%d%d)T(%d%d):(%d%d):(%d%d)(%.?%d*)Z$')
  if not y then return nil end
  y, m, d, h, min, s = tonumber(y), tonumber(m), tonumber(d), tonumber(h), tonumber(min), tonumber(s)
  if m < 1 or m > 12 or d < 1 or d > 31 or h > 23 or min > 59 or s > 59 then return nil end
  if m <= 2 then y = y - 1; m = m + 12 end -- the year begins in March, so that a leap day is its last
  local days = 365 * y + math.floor(y / 4) - math.floor(y / 100) + math.floor(y / 400) + math.floor((153 * (m - 3) + 2) / 5) + d - 719469
  return days * 86400 + h * 3600 + min * 60 + s + (tonumber('0' .. part) or 0)
end
-- written is the time of a number of whole seconds since 1970 and microseconds
local function written(s, us)
  local days = math.floor(s / 86400)
  local rest = s - days * 86400
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local y, m = yoe + era * 400, mp < 10 and mp + 3 or mp - 9
  if m <= 2 then y = y + 1 end
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', y, m, doy - math.floor((153 * mp + 2) / 5) + 1,
    math.floor(rest / 3600), math.floor(rest % 3600 / 60), rest % 60, us)
end
-- the_time is given, or else Redis's own
local function the_time(given)
  if given ~= '' then return given end
  local t = redis.call('TIME')
  return written(tonumber(t[1]), tonumber(t[2]))
end
-- never_back is now, or last where a host or a Redis whose clock was ahead wrote that. One
-- that is more than a day ahead is no time to follow.
local function never_back(now, last)
  local a, b = seconds(last), seconds(now)
  if a and a > b and a - b < 86400 then return last end
  return now
end
-- later is ms after t
local function later(t, ms)
  local us = math.floor(seconds(t) * 1000 + 0.5) * 1000 + math.floor(tonumber(ms)) * 1000
  return written(math.floor(us / 1000000), us % 1000000)
end
`
