-- Completes a run without waiters. Only the state, the times and the result at the end of the
-- record change. All other cases go to the function above, which is built only when it is needed.
local done, settle = ARGV[1] == 'done', nil
local ends = {}

local function carry_out(n)
  if done then
    local key, fence, result = KEYS[2 * n - 1], ARGV[2 * n + 1], ARGV[2 * n + 2]
    local text = redis.call('GET', key) or ''
    local rest, retention, held = string.match(
      text, '^lw1 held at=%d+ until=%d+() retention=(%d+) fence=(%d+) line=0 ')
    if held == fence then
      ends[retention] = ends[retention] or int(now_ms + retention)
      local record = 'lw1 done at=' .. now .. ' until=' .. ends[retention]
        .. string.sub(text, rest) .. result
      redis.call('SET', key, record, 'PX', retention)
      redis.call('SPUBLISH', KEYS[2 * n], record)
      return 1, record
    end
  end
  settle = settle or transition()
  return settle(n)
end
