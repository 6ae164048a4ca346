-- In front of a user's script: it runs only if the grant stands, in the same step.
-- KEYS[1] the record, ARGV[1] the fencing token; the user's own follow, and are all that it sees.
do
  local state, fence = string.match(redis.call('GET', KEYS[1]) or '', '^lw1 (%l+) .- fence=(%d+) ')
  if not ((state == 'held' or state == 'granted') and fence == ARGV[1]) then
    error({ err = 'LWLOST the grant does not stand' })
  end
end
local KEYS, ARGV = (function()
  local keys, args = {}, {}
  for n = 2, #KEYS do
    keys[n - 1] = KEYS[n]
  end
  for n = 2, #ARGV do
    args[n - 1] = ARGV[n]
  end
  return keys, args
end)()
