-- The prefix of a user's script. It runs the script in the same step only if the grant stands.
-- KEYS[1] is the record, ARGV[1] the fencing token. The script sees only the rest, which are its
-- own.
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
