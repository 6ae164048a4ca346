-- Restart a grant's lease, which never shortens it; confirms it if it was handed over.
-- ARGV: fencing token, lease in ms, then optionally a checkpoint.
-- Answers ok=1 if the grant stands.
local r = load()
if not r or not owned(r) or r.fence ~= ARGV[1] then
  return reply(0)
end
hold(r, tonumber(ARGV[2]))
r.checkpoint = ARGV[3] or r.checkpoint
save(r)
return reply(1)
