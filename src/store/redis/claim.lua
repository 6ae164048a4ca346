-- Takes a key that has a record, or joins its queue.
-- ARGV: label, lease in ms, max attempts, retention in ms; per item: token (32 hex digits).
-- ok=1 if the token holds the key. Only a waiter gets a position.
local label, lease = ARGV[1], tonumber(ARGV[2])
local max, retention = tonumber(ARGV[3]), tonumber(ARGV[4])

return function(n)
  local token = ARGV[4 + n]
  local member = token .. label
  local r = load(n)

  local function take(attempt)
    if r.line then
      redis.call('ZREM', line, member)
    end
    grant(r, 'held', attempt, token, label, lease)
    save(r)
    return reply(1)
  end

  if forgotten(r) then
    -- A new run, as if the key were absent, but the fencing token still rises.
    drop_line(r)
    r.attempt, r.max, r.retention, r.owner, r.last = 0, max, retention, '-', '-'
    r.previous, r.cause, r.previous_holder, r.reason = 0, '-', '', ''
    r.checkpoint, r.result = '', ''
    return take(1)
  end

  if owned(r) and r.owner == token then
    if r.state == 'granted' then
      hold(r, lease)
      save(r)
    end
    return reply(1)
  elseif r.last == token or r.state == 'done' or r.state == 'gave_up' then
    -- A late duplicate of a claim, or the run is over.
    return reply(0)
  elseif owned(r) and not over(r) then
    if not r.line then
      -- No waiter has joined in this run. A queue that exists belongs to a record that was lost.
      if redis.call('ZCARD', line) > 0 then
        redis.call('DEL', line)
      end
      r.line = true
      record_text = encode(r)
      redis.call('SET', key, record_text, 'KEEPTTL')
    end
    local rank = redis.call('ZRANK', line, member)
    if not rank then
      local tail = redis.call('ZRANGE', line, -1, -1, 'WITHSCORES')
      redis.call('ZADD', line, (tail[2] or 0) + 1, member)
      redis.call('PEXPIRE', line, ttl(r))
      rank = redis.call('ZCARD', line) - 1
    end
    return reply(0, rank)
  elseif r.state == 'granted' then
    -- Not confirmed within its window: the attempt is used again.
    return take(r.attempt)
  end

  if r.state == 'held' then
    remember(r, 'expired', '')
  end
  if r.attempt >= r.max then
    give_up(r)
    return reply(0)
  end
  return take(r.attempt + 1)
end
