-- admit: may a call be made now under a rate limit that the whole fleet shares? (see `turn`)
-- KEYS     1 board  2 rates
-- ARGV     1 name  2 calls per window  3 tokens per window ('' without a limit)  4 window_ms  5 tokens of this call
-- Returns  {'yes'}   {'wait', ms}: the window is full, or the provider asked everybody to wait
local function admit(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local wait_ms, rate = turn(redis.call('HGET', keys[2], argv[1]), now_ms, tonumber(argv[2]), tonumber(argv[3]),
    tonumber(argv[5]), tonumber(argv[4]))
  if wait_ms then return { 'wait', whole(wait_ms) } end
  redis.call('HSET', keys[2], argv[1], rate)
  return { 'yes' }
end
register('admit', admit)
