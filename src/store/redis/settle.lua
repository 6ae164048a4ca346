-- Ends a grant.
-- ARGV: outcome, confirm window of a successor in ms; per item: fencing token, and result or
-- reason.
-- Outcomes: done, hand_off, dropped, panicked, failed, failed_permanently.
-- ok=1 if the outcome is applied now, or if a completion was before.
local outcome, window = ARGV[1], tonumber(ARGV[2])

return function(n)
  local fence, payload = ARGV[2 * n + 1], ARGV[2 * n + 2]
  local r = load(n)

  -- A duplicate completion succeeds again.
  if r and r.state == 'done' and outcome == 'done' and r.fence == fence then
    return reply(1)
  elseif not r or not owned(r) or r.fence ~= fence then
    return reply(0)
  elseif outcome == 'done' then
    r.state, r.result, r.ends = 'done', payload, now_ms + r.retention
    drop_line(r)
    save(r)
  elseif outcome == 'hand_off' then
    -- The reason of a failure outlives the hand-offs after it.
    if r.cause == '-' or r.cause == 'handed_off' then
      remember(r, 'handed_off', '')
    end
    grant_to_next(r, r.attempt, window)
  else
    remember(r, outcome == 'failed_permanently' and 'failed' or outcome, payload)
    if outcome == 'failed_permanently' or r.attempt >= r.max then
      give_up(r)
    else
      grant_to_next(r, r.attempt + 1, window)
    end
  end
  return reply(1)
end
