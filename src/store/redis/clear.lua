-- Begin a run anew, whoever has it, with the bounds it had. Its head of the line is first.
-- ARGV: confirm window of the head in ms.
-- Answers ok=1 if there was a run.
local window = tonumber(ARGV[1])

return function(n)
  local r = load(n)
  if not r then
    return reply(0)
  end
  clear_owner(r)
  -- What comes now is news, whatever the state was, and nobody's grant.
  bump_fence(r)
  r.previous, r.cause, r.previous_holder, r.reason, r.checkpoint, r.result = 0, '-', '', '', '', ''
  grant_to_next(r, 1, window)
  return reply(1)
end
