-- The start of every script: the clock and the format of answers.
--
-- A script applies its transition to any number of keys, one after the other. Item n has
-- KEYS[2n-1], its record, and KEYS[2n], the name of its queue and its channel. All names share one
-- slot. ARGV has the shared arguments, then those of each item.
-- The answer is {server time in µs, then for each item a number and the record or ''}. Once the
-- records exceed 256 KiB, the remaining items are neither executed nor answered. The number is ok
-- (1 or 0) plus twice the position in the queue, from 1, if there is one. An item that fails has -1
-- and its error, and the other items go on.

-- Lua would write 1e14 and above with an exponent.
local function int(number)
  return string.format('%.0f', number)
end

-- In µs, as text, which the record takes as it is.
local time = redis.call('TIME')
local now = time[1] .. string.sub('00000' .. time[2], -6)
local now_ms = tonumber(string.sub(now, 1, -4))
