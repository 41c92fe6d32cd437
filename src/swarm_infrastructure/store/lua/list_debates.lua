-- list_debates: which debates are open, which are due to be closed, and which to be forgotten. Reads only.
-- KEYS     1 board  2 debates  3 debates_closed
-- ARGV     1 at most so many of each
-- Returns  {now_ms, {open ids, by deadline}, {ids to close}, {ids to forget}}
local function list_debates(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local function ids(key, from, to)
    return redis.call('ZRANGEBYSCORE', key, from, to, 'LIMIT', 0, argv[1])
  end
  return { whole(now_ms), ids(keys[2], '(' .. whole(now_ms), '+inf'), ids(keys[2], '-inf', now_ms), ids(keys[3], '-inf', now_ms) }
end
register('list_debates', list_debates, { 'no-writes' })
