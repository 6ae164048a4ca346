-- Writes a record again unchanged, so that a WAIT after it covers the record, whatever this
-- connection wrote before.
-- ok=1 if there is a record.
return function(n)
  local r = load(n)
  if r then
    redis.call('SET', key, record_text, 'KEEPTTL')
  end
  return reply(r and 1 or 0)
end
