-- Read the record; changes nothing. Fails if the user may not do what the other scripts do, so that
-- this is known before one of them is half-way.
-- Answers ok=1, and the line's length as the position.
for _, command in ipairs({
  { 'GET', KEYS[1] }, { 'SET', KEYS[1], '', 'PX', '1' }, { 'DEL', KEYS[2] }, { 'PEXPIRE', KEYS[2], '1' },
  { 'ZADD', KEYS[2], '1', '' }, { 'ZREM', KEYS[2], '' }, { 'ZRANK', KEYS[2], '' },
  { 'ZRANGE', KEYS[2], '0', '0' }, { 'ZCARD', KEYS[2] }, { 'ZPOPMIN', KEYS[2] }, { 'SPUBLISH', KEYS[3], '' },
}) do
  if not redis.acl_check_cmd(unpack(command)) then
    error({ err = 'NOPERM ' .. command[1] })
  end
end
return reply(1, load() and redis.call('ZCARD', KEYS[2]) or 0)
