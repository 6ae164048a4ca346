-- Read the record; changes nothing.
-- Answers ok=1, and the line's length as the position.
load()
return reply(1, redis.call('ZCARD', KEYS[2]))
