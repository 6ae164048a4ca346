-- Leave: the waiting line, or a grant that nobody has begun to work on.
-- ARGV: label, confirm window of a successor in ms; for each item its token.
-- Answers ok=1 if the token waited or owned.
local label, window = ARGV[1], tonumber(ARGV[2])

return function(n)
  local token = ARGV[2 + n]
  local r = load(n)
  local waited = r and r.line and redis.call('ZREM', line, token .. label)
  if r and owned(r) and r.owner == token then
    pass_on(r, r.attempt, window)
    return reply(1)
  end
  return reply(waited or 0)
end
