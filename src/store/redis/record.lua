-- What the transitions share: the record's text form, and how a change is kept and told.
-- src/store/record.rs describes the text form.

local HEADER = '^lw1 (%l+) at=%d+ until=(%d+) retention=(%d+) fence=(%d+) line=([01]) attempt=(%d+)/(%d+)'
  .. ' renewal=(%d+) owner=(%S+) last=(%S+) previous=(%d+):(%S+) sizes=(%d+),(%d+),(%d+),(%d+)\n()'
local FORMAT = 'lw1 %s at=%s until=%.0f retention=%.0f fence=%s line=%s attempt=%d/%d'
  .. ' renewal=%d owner=%s last=%s previous=%s:%s sizes=%d,%d,%d,%d\n'

-- The item's own.
local key, line, record_text

-- Item n's record, or nil if there is none. Fails, before anything was written, on a key of
-- another type and on a text that is no record of this version.
local function load(n)
  key, line, record_text = KEYS[2 * n - 1], KEYS[2 * n], ''
  local text = redis.call('GET', key)
  if not text then
    return nil
  end
  local r = {}
  local attempt, max, ends, retention, has_line, s1, s2, s3, s4, at
  r.state, ends, retention, r.fence, has_line, attempt, max, r.renewal, r.owner, r.last,
    r.previous, r.cause, s1, s2, s3, s4, at = string.match(text, HEADER)
  if not at then
    error({ err = 'LWFORMAT ' .. (string.match(text, '^lw%d+') or 'no record') })
  end
  r.attempt, r.max, r.ends = tonumber(attempt), tonumber(max), tonumber(ends)
  r.retention, r.line = tonumber(retention), has_line == '1'
  local function payload(size)
    local from = at
    at = at + size + 1
    return string.sub(text, from, at - 2)
  end
  r.holder, r.previous_holder, r.reason, r.checkpoint = payload(s1), payload(s2), payload(s3), payload(s4)
  if at > #text + 1 then
    error({ err = 'LWFORMAT lw1 (sizes)' })
  end
  r.result = string.sub(text, at)
  record_text = text
  return r
end

-- The payloads are not formatted: '%s' ends at a zero byte.
local function encode(r)
  return string.format(FORMAT, r.state, now, r.ends, r.retention, r.fence, r.line and '1' or '0',
      r.attempt, r.max, r.renewal, r.owner, r.last, r.previous, r.cause,
      #r.holder, #r.previous_holder, #r.reason, #r.checkpoint)
    .. r.holder .. '\n' .. r.previous_holder .. '\n' .. r.reason .. '\n'
    .. r.checkpoint .. '\n' .. r.result
end

local function owned(r)
  return r.state == 'held' or r.state == 'granted'
end

local function over(r)
  return now_ms >= r.ends
end

-- How long the record lives from now: a lease is remembered for the retention after its end.
local function life(r)
  return int(owned(r) and r.ends - now_ms + r.retention or r.retention)
end

-- Keeps a change and tells it, last: whoever hears it can rely on it. What a user may not be permitted to
-- do comes before the record, so that a refusal leaves it as it was.
local function save(r)
  record_text = encode(r)
  if r.line then
    redis.call('PEXPIRE', line, life(r))
  end
  redis.call('SET', key, record_text, 'PX', life(r))
  redis.call('SPUBLISH', line, record_text)
end

-- `place` in the line is from 0.
local function reply(ok, place)
  return place and ok + 2 * (place + 1) or ok, record_text
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
  if r.line then
    redis.call('DEL', line)
    r.line = false
  end
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
  local head = r.line and redis.call('ZPOPMIN', line)[1]
  if head then
    grant(r, 'granted', attempt, string.sub(head, 1, 32), string.sub(head, 33), window)
  else
    disown(r)
    r.state, r.attempt, r.ends = 'open', attempt - 1, now_ms + r.retention
  end
  save(r)
end
