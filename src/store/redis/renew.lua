-- Restarts the lease of a grant and never shortens it. Confirms a pushed grant.
-- ARGV per item: fencing token, lease in ms, and 1 with a checkpoint or 0 with ''.
-- ok=1 if the grant stands.
return function(n)
  local fence, lease = ARGV[4 * n - 3], ARGV[4 * n - 2]
  local leaves, checkpoint = ARGV[4 * n - 1], ARGV[4 * n]
  local r = load(n)
  if not r or not owned(r) or r.fence ~= fence then
    return reply(0)
  end
  hold(r, tonumber(lease))
  if leaves == '1' then
    r.checkpoint = checkpoint
  end
  save(r)
  return reply(1)
end
