-- Write the record again as it is, so that whoever waits for replicas after this waits for the record,
-- whatever this connection has written before.
-- Answers ok=1 if there is one.
local r = load()
if r then
  redis.call('SET', KEYS[1], record_text, 'KEEPTTL')
end
return reply(r and 1 or 0)
