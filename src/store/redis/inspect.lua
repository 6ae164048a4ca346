-- Reads a record; changes nothing. Fails if the user may not run a command of the other scripts, so
-- that this is known before one of them is half-way.
-- ok=1, with the length of the queue as the position.
return function(n)
  local key, line = KEYS[2 * n - 1], KEYS[2 * n]
  for _, command in ipairs({
    { 'GET', key }, { 'SET', key, '', 'PX', '1' }, { 'DEL', line }, { 'PEXPIRE', line, '1' },
    { 'ZADD', line, '1', '' }, { 'ZREM', line, '' }, { 'ZRANK', line, '' },
    { 'ZRANGE', line, '0', '0' }, { 'ZCARD', line }, { 'ZPOPMIN', line }, { 'SPUBLISH', line, '' },
    { 'SSUBSCRIBE', line }, { 'SUNSUBSCRIBE', line },
  }) do
    -- The server may lack a command or have it renamed.
    local known, permitted = pcall(redis.acl_check_cmd, unpack(command))
    if not (known and permitted) then
      error({ err = (known and 'NOPERM ' or 'ERR unknown command ') .. command[1] })
    end
  end
  local r = load(n)
  return reply(1, r and r.line and redis.call('ZCARD', line) or 0)
end
