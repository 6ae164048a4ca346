-- Read the record; changes nothing.
-- Answers ok=1, and the line's length as the position.
return reply(1, load() and redis.call('ZCARD', KEYS[2]) or 0)
