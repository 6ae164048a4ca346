-- Leaves the queue, or gives back a grant that its holder has not begun to work on.
-- ARGV: label, confirm window of a successor in ms; per item: token, and the fencing token of the
-- token's grant that stays as it is, or 0.
-- ok=1 if the token waited or owned another grant.
local label, window = ARGV[1], tonumber(ARGV[2])

return function(n)
  local token, except_fence = ARGV[2 * n + 1], ARGV[2 * n + 2]
  local r = load(n)
  local waited = r and r.line and redis.call('ZREM', line, token .. label)
  if r and owned(r) and r.owner == token and r.fence ~= except_fence then
    grant_to_next(r, r.attempt, window)
    return reply(1)
  end
  return reply(waited or 0)
end
