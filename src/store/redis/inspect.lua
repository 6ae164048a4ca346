-- Read a record; changes nothing. Fails if the user may not do what the other scripts do, so that
-- this is known before one of them is half-way.
-- Answers ok=1, and the line's length as the place.
return function(n)
  local key, line = KEYS[2 * n - 1], KEYS[2 * n]
  for _, command in ipairs({
    { 'GET', key }, { 'SET', key, '', 'PX', '1' }, { 'DEL', line }, { 'PEXPIRE', line, '1' },
    { 'ZADD', line, '1', '' }, { 'ZREM', line, '' }, { 'ZRANK', line, '' }, { 'ZRANGE', line, '0', '0' },
    { 'ZCARD', line }, { 'ZPOPMIN', line }, { 'SPUBLISH', line, '' },
  }) do
    if not redis.acl_check_cmd(unpack(command)) then
      error({ err = 'NOPERM ' .. command[1] })
    end
  end
  local r = load(n)
  return reply(1, r and r.line and redis.call('ZCARD', line) or 0)
end
