-- Shared by all transitions: the text form of a record (see src/protocol/record.rs), and how a
-- change is saved and published.

local HEADER = '^lw1 ([%l_]+) at=([1-9]%d*) until=([1-9]%d*) retention=([1-9]%d*)'
  .. ' fence=([1-9]%d*) line=([01]) attempt=(%d+)/([1-9]%d*) renewal=(%d+) owner=((%-?)[0-9a-f]*)'
  .. ' last=((%-?)[0-9a-f]*) previous=(%d+):(%S+) sizes=(%d+),(%d+),(%d+),(%d+)\n()'
-- Those of the current item.
local key, line, record_text

local function refuse(text)
  error({ err = 'LWFORMAT ' .. (string.match(text, '^lw%d+') or 'not a lock record') })
end

-- Returns item n's record, or nil. Before any write, it refuses a key of another type and every
-- text that record/codec.rs refuses, except for labels and reasons that are not UTF-8, which would
-- take too long to check.
local function load(n)
  key, line, record_text = KEYS[2 * n - 1], KEYS[2 * n], ''
  local text = redis.call('GET', key)
  if not text then
    return nil
  end
  local state, at, ends, retention, fence, has_line, attempt, max, renewal,
    owner, no_owner, last, no_last, previous, cause, s1, s2, s3, s4, p1 = string.match(text, HEADER)
  if not p1 then
    refuse(text)
  end
  -- Where each payload begins, and the result after them.
  local p2 = p1 + s1 + 1
  local p3 = p2 + s2 + 1
  local p4 = p3 + s3 + 1
  local p5 = p4 + s4 + 1
  local tried, most, before = attempt + 0, max + 0, previous + 0
  -- A number of n digits below 10^(n-1) has leading zeros. Calls cost the most time, so one call
  -- checks three line feeds if there is neither a reason nor a checkpoint.
  if not (
    (state == 'held' or state == 'granted' or state == 'open' or state == 'done'
      or state == 'gave_up')
    and #at < 17 and #ends < 15 and #retention < 15 and fence + 0 < 2^53
    and tried < 2^32 and most < 2^32
    and (attempt == '0' and state == 'open' or tried >= 10^(#attempt - 1))
    and (renewal == '0' or #renewal < 15 and renewal + 0 >= 10^(#renewal - 1))
    and (owner == '-' or #owner == 32 and no_owner == '')
    and (last == '-' or #last == 32 and no_last == '')
    and (previous == '0' and cause == '-' and s2 == '0' and s3 == '0'
      or before >= 10^(#previous - 1) and before < 2^32
        and (cause == 'dropped' or cause == 'panicked' or cause == 'failed'
          or cause == 'expired' or cause == 'handed_off'))
    and (s1 == '0' or p2 - p1 > 10^(#s1 - 1)) and (s2 == '0' or p3 - p2 > 10^(#s2 - 1))
    and (s3 == '0' or p4 - p3 > 10^(#s3 - 1)) and (s4 == '0' or p5 - p4 > 10^(#s4 - 1))
    and string.byte(text, p2 - 1) == 10
    and (p5 - p3 == 2 and string.sub(text, p3 - 1, p5 - 1) == '\n\n\n'
      or string.byte(text, p3 - 1) == 10 and string.byte(text, p4 - 1) == 10
        and string.byte(text, p5 - 1) == 10)
  ) then
    refuse(text)
  end
  record_text = text
  return {
    state = state, ends = ends + 0, retention = retention + 0, fence = fence,
    line = has_line == '1', attempt = tried, max = most, renewal = renewal,
    owner = owner, last = last, previous = previous, cause = cause,
    holder = s1 == '0' and '' or string.sub(text, p1, p2 - 2),
    previous_holder = s2 == '0' and '' or string.sub(text, p2, p3 - 2),
    reason = s3 == '0' and '' or string.sub(text, p3, p4 - 2),
    checkpoint = s4 == '0' and '' or string.sub(text, p4, p5 - 2),
    result = p5 > #text and '' or string.sub(text, p5),
  }
end

-- No number has more than 14 digits, up to which Lua writes all digits.
local function encode(r)
  return 'lw1 ' .. r.state .. ' at=' .. now .. ' until=' .. r.ends .. ' retention=' .. r.retention
    .. ' fence=' .. r.fence .. (r.line and ' line=1 attempt=' or ' line=0 attempt=')
    .. r.attempt .. '/' .. r.max .. ' renewal=' .. r.renewal .. ' owner=' .. r.owner
    .. ' last=' .. r.last .. ' previous=' .. r.previous .. ':' .. r.cause
    .. ' sizes=' .. #r.holder .. ',' .. #r.previous_holder .. ',' .. #r.reason .. ','
    .. #r.checkpoint .. '\n' .. r.holder .. '\n' .. r.previous_holder .. '\n' .. r.reason .. '\n'
    .. r.checkpoint .. '\n' .. r.result
end

local function owned(r)
  return r.state == 'held' or r.state == 'granted'
end

local function over(r)
  return now_ms >= r.ends
end

-- Whether the record should have expired. It can outlive its expiry if it lost its TTL, as by
-- PERSIST or a tool that copies keys.
local function forgotten(r)
  return now_ms >= (owned(r) and r.ends + r.retention or r.ends)
end

-- A lease is remembered for the retention after its end.
local function ttl(r)
  return owned(r) and r.ends - now_ms + r.retention or r.retention
end

-- Saves a change, then publishes it: a subscriber can rely on what it receives. Commands that the
-- user may lack permission for come before the SET, so that a refusal leaves the record as it was.
local function save(r)
  local ttl = ttl(r)
  record_text = encode(r)
  if r.line then
    redis.call('PEXPIRE', line, ttl)
  end
  redis.call('SET', key, record_text, 'PX', ttl)
  redis.call('SPUBLISH', line, record_text)
end

-- `place` is the position in the queue, from 0.
local function reply(ok, place)
  return place and ok + 2 * (place + 1) or ok, record_text
end

-- Keeps the ended attempt for the next holder.
local function remember(r, cause, reason)
  r.previous, r.cause, r.previous_holder, r.reason = r.attempt, cause, r.holder, reason
end

-- Ends the ownership. A claim of the last owner's token is refused from now on.
local function clear_owner(r)
  if r.owner ~= '-' then
    r.last = r.owner
  end
  r.owner, r.holder = '-', ''
end

-- A fencing token above all before it.
local function bump_fence(r)
  r.fence, r.renewal = tonumber(now) > tonumber(r.fence) and now or int(r.fence + 1), 0
end

local function grant(r, state, attempt, token, label, lease)
  clear_owner(r)
  bump_fence(r)
  r.state, r.attempt, r.owner, r.holder = state, attempt, token, label
  r.ends = now_ms + lease
end

-- The owner is alive: restart its lease, but never shorten it.
local function hold(r, lease)
  r.state, r.ends, r.renewal = 'held', math.max(r.ends, now_ms + lease), r.renewal + 1
end

-- Ends the queue.
local function drop_line(r)
  if r.line then
    redis.call('DEL', line)
    r.line = false
  end
end

-- Gives up: no further attempt, and no queue.
local function give_up(r)
  clear_owner(r)
  r.state, r.ends = 'gave_up', now_ms + r.retention
  drop_line(r)
  save(r)
end

-- Grants this attempt to the head of the queue, or leaves it for a later claim.
local function grant_to_next(r, attempt, window)
  local head = r.line and redis.call('ZPOPMIN', line)[1]
  if head then
    grant(r, 'granted', attempt, string.sub(head, 1, 32), string.sub(head, 33), window)
  else
    clear_owner(r)
    r.state, r.attempt, r.ends = 'open', attempt - 1, now_ms + r.retention
  end
  save(r)
end
