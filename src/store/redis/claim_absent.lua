-- Takes an absent key, the first attempt of a run, with one command. All other cases go to the
-- function above, which is built only when it is needed.
local label, lease, max, retention = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local before = 'lw1 held at=' .. now .. ' until=' .. int(now_ms + lease)
  .. ' retention=' .. retention .. ' fence=' .. now
  .. ' line=0 attempt=1/' .. max .. ' renewal=0 owner='
local after = ' last=- previous=0:- sizes=' .. #label .. ',0,0,0\n' .. label .. '\n\n\n\n'
local ttl = int(lease + retention)
local claim

local function carry_out(n)
  local key, line, record = KEYS[2 * n - 1], KEYS[2 * n], before .. ARGV[4 + n] .. after
  -- Checked first, because a refused publish would come after the SET.
  if not redis.acl_check_cmd('SPUBLISH', line, '') then
    error({ err = 'NOPERM publish' })
  end
  if not redis.call('SET', key, record, 'NX', 'GET', 'PX', ttl) then
    redis.call('SPUBLISH', line, record)
    return 1, record
  end
  claim = claim or transition()
  return claim(n)
end
