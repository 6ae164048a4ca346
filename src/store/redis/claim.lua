-- Take the key, or join its waiting line.
-- ARGV: token (32 hex digits), label, lease in ms, max attempts, retention in ms.
-- Answers ok=1 if the token holds the key, 0 otherwise; a position only if it waits.
local token, label, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
local member = token .. label
local r = load()

-- The one check a script does not get from its first call: a refused publish would come after the
-- writes.
if not redis.acl_check_cmd('SPUBLISH', KEYS[3], '') then
  error({ err = 'NOPERM publish' })
end

local function take(attempt)
  if r.line then
    redis.call('ZREM', KEYS[2], member)
  end
  grant(r, 'held', attempt, token, label, lease)
  save(r)
  return reply(1)
end

if not r then
  r = {
    max = ARGV[4], retention = tonumber(ARGV[5]), fence = '0', owner = '-', last = '-',
    previous = '0', cause = '-', previous_holder = '', reason = '', checkpoint = '', result = '',
  }
  drop_line(r)
  return take(1)
elseif owned(r) and r.owner == token then
  if r.state == 'granted' then
    hold(r, lease)
    save(r)
  end
  return reply(1)
elseif r.last == token or r.state == 'done' or r.state == 'exhausted' then
  return reply(0)
elseif owned(r) and not over(r) then
  local rank = redis.call('ZRANK', KEYS[2], member)
  if not rank then
    local tail = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
    redis.call('ZADD', KEYS[2], (tail[2] or 0) + 1, member)
    redis.call('PEXPIRE', KEYS[2], int(life(r)))
    rank = redis.call('ZCARD', KEYS[2]) - 1
  end
  return reply(0, rank)
elseif r.state == 'granted' then
  return take(r.attempt)
end

if r.state == 'held' then
  remember(r, 'expired', '')
end
if r.attempt >= r.max then
  exhaust(r)
  return reply(0)
end
return take(r.attempt + 1)
