-- Write a record again as it is, so that whoever waits for replicas after this waits for the record,
-- whatever this connection has written before.
-- Answers ok=1 if there is one.
return function(n)
  local r = load(n)
  if r then
    redis.call('SET', key, record_text, 'KEEPTTL')
  end
  return reply(r and 1 or 0)
end
