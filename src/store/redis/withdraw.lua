-- Leave: the waiting line, or a grant that nobody has begun to work on.
-- ARGV: token, label, confirm window of a successor in ms.
-- Answers ok=1 if the token waited or owned.
local token, window = ARGV[1], tonumber(ARGV[3])
local r = load()
local waited = redis.call('ZREM', KEYS[2], token .. ARGV[2])
if r and owned(r) and r.owner == token then
  pass_on(r, r.attempt, window)
  return reply(1)
end
-- A line without its record is nobody's.
return reply(r and waited or 0)
