-- Starts a run anew with its present bounds, even if a holder works on it. The head of the queue
-- gets the grant.
-- ARGV: confirm window of the head in ms.
-- ok=1 if there was a run.
local window = tonumber(ARGV[1])

return function(n)
  local r = load(n)
  if not r then
    return reply(0)
  end
  clear_owner(r)
  -- A new fence makes this newer than any state of the old grant, and ends that grant.
  bump_fence(r)
  r.previous, r.cause, r.previous_holder, r.reason, r.checkpoint, r.result = 0, '-', '', '', '', ''
  grant_to_next(r, 1, window)
  return reply(1)
end
