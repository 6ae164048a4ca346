-- What every script begins with: the clock, and the answers.
--
-- A script carries out its transition on any number of keys, one after the other. Item n has KEYS[2n-1],
-- its record, and KEYS[2n], the name both of its waiting line and of its channel; all share one slot. ARGV
-- holds what the items have in common, then so many arguments for each of them.
-- Answers {server time in µs, then for each item a number and the record or ''}; those at the end are left
-- undone and unanswered if the records before are more than 256 KiB. The number is ok (1 or 0)
-- and twice its place in the line, from 1, if it has one. What goes wrong with one item is its own: -1 and the
-- error.

-- Lua would write 1e14 and above with an exponent.
local function int(number)
  return string.format('%.0f', number)
end

-- In µs, as text: it is only ever compared.
local time = redis.call('TIME')
local now = time[1] .. string.sub('00000' .. time[2], -6)
local now_ms = tonumber(string.sub(now, 1, -4))
