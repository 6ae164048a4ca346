-- What every script shares: the clock, the record's text form, and how a change is kept and told.
-- KEYS[1] the record, KEYS[2] the waiting line, KEYS[3] the channel: all in one slot.
-- Every script answers {ok (1 or 0), frame, position in the line from 0 or -1}.
-- src/store/record.rs describes the record's text form.

-- Lua would write 1e14 and above with an exponent.
local function int(number)
  return string.format('%.0f', number)
end

-- In µs, as text: it is only ever compared.
local time = redis.call('TIME')
local now = time[1] .. string.sub('00000' .. time[2], -6)
local now_ms = tonumber(string.sub(now, 1, -4))

local HEADER = '^lw1 (%l+) attempt=(%d+)/(%d+) fence=(%d+) renewal=(%d+) until=(%d+) retention=(%d+)'
  .. ' owner=(%S+) last=(%S+) previous=(%d+):(%S+) sizes=(%d+),(%d+),(%d+),(%d+),(%d+)\n()'
local FORMAT = 'lw1 %s attempt=%d/%d fence=%s renewal=%d until=%.0f retention=%.0f'
  .. ' owner=%s last=%s previous=%s:%s sizes=%d,%d,%d,%d,%d\n'

local record_text = ''

-- The key's record, or nil if there is none. Fails, before anything was written, on a key of
-- another type and on a text that is no record of this version.
local function load()
  local text = redis.call('GET', KEYS[1])
  if not text then
    return nil
  end
  local r = {}
  local attempt, max, ends, retention, s1, s2, s3, s4, s5, at
  r.state, attempt, max, r.fence, r.renewal, ends, retention, r.owner, r.last,
    r.previous, r.cause, s1, s2, s3, s4, s5, at = string.match(text, HEADER)
  if not at then
    error({ err = 'LWFORMAT ' .. (string.match(text, '^lw%d+') or 'no record') })
  end
  r.attempt, r.max, r.ends = tonumber(attempt), tonumber(max), tonumber(ends)
  r.retention = tonumber(retention)
  local function payload(size)
    local from = at
    at = at + size + 1
    return string.sub(text, from, at - 2)
  end
  r.holder, r.previous_holder, r.reason = payload(s1), payload(s2), payload(s3)
  r.checkpoint, r.result = payload(s4), payload(s5)
  if at ~= #text + 1 then
    error({ err = 'LWFORMAT lw1 (sizes)' })
  end
  record_text = text
  -- There may be a waiting line, which lives as long as the record.
  r.line = true
  return r
end

-- The payloads are not formatted: '%s' ends at a zero byte.
local function encode(r)
  return string.format(FORMAT, r.state, r.attempt, r.max, r.fence, r.renewal, r.ends, r.retention,
      r.owner, r.last, r.previous, r.cause,
      #r.holder, #r.previous_holder, #r.reason, #r.checkpoint, #r.result)
    .. r.holder .. '\n' .. r.previous_holder .. '\n' .. r.reason .. '\n'
    .. r.checkpoint .. '\n' .. r.result .. '\n'
end

local function owned(r)
  return r.state == 'held' or r.state == 'granted'
end

local function over(r)
  return now_ms >= r.ends
end

local function frame()
  return now .. ' ' .. record_text
end

-- How long the record lives from now: a lease is remembered for the retention after its end.
local function life(r)
  return owned(r) and r.ends - now_ms + r.retention or r.retention
end

-- The only place that writes a record. It publishes last: whoever hears it can rely on it. What a
-- user may not be permitted to do comes before the record, so that a refusal leaves it as it was.
local function save(r)
  record_text = encode(r)
  local life = int(life(r))
  if r.line then
    redis.call('PEXPIRE', KEYS[2], life)
  end
  redis.call('SET', KEYS[1], record_text, 'PX', life)
  redis.call('SPUBLISH', KEYS[3], frame())
end

local function reply(ok, position)
  return { ok, frame(), position or -1 }
end

-- The attempt before the next one.
local function remember(r, cause, reason)
  r.previous, r.cause, r.previous_holder, r.reason = r.attempt, cause, r.holder, reason
end

-- Nobody owns it from here on, and the last owner's token is refused.
local function disown(r)
  if r.owner ~= '-' then
    r.last = r.owner
  end
  r.owner, r.holder = '-', ''
end

local function grant(r, state, attempt, token, label, lease)
  disown(r)
  r.state, r.attempt, r.owner, r.holder = state, attempt, token, label
  r.fence, r.renewal = tonumber(now) > tonumber(r.fence) and now or int(r.fence + 1), 0
  r.ends = now_ms + lease
end

-- Its owner is there: the lease lasts this long from now, or longer if it did already.
local function hold(r, lease)
  r.state, r.ends, r.renewal = 'held', math.max(r.ends, now_ms + lease), r.renewal + 1
end

-- Nobody waits any more.
local function drop_line(r)
  redis.call('DEL', KEYS[2])
  r.line = false
end

-- Gives up: no further attempt, and nobody waits.
local function exhaust(r)
  disown(r)
  r.state, r.ends = 'exhausted', now_ms + r.retention
  drop_line(r)
  save(r)
end

-- Passes the grant to the head of the line as the given attempt, or leaves that attempt to be made.
local function pass_on(r, attempt, window)
  local head = redis.call('ZPOPMIN', KEYS[2])[1]
  if head then
    grant(r, 'granted', attempt, string.sub(head, 1, 32), string.sub(head, 33), window)
  else
    disown(r)
    r.state, r.attempt, r.ends = 'open', attempt - 1, now_ms + r.retention
  end
  save(r)
end
