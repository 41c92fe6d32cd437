-- list_older: what a table of times has from more than so long ago.
-- KEYS     1 board  2 times   zset: name → ms since the epoch, as `now` tells it
-- ARGV     1 ms (may be 0)
-- Returns  names, oldest first
local function list_older(keys, argv)
  local _, now_ms = read_clock(keys[1])
  return redis.call('ZRANGEBYSCORE', keys[2], '-inf', whole(now_ms - tonumber(argv[1])))
end
register('list_older', list_older, { 'no-writes' })
