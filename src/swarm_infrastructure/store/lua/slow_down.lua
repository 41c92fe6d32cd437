-- slow_down: a provider asked to wait; everybody who calls it does.
-- KEYS     1 board  2 rates
-- ARGV     1 name  2 ms
-- Returns  {'waits', until_ms}
local function slow_down(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local began, calls, tokens, until_ms = string.match(redis.call('HGET', keys[2], argv[1]) or '0 0 0 0', RATE)
  until_ms = math.max(tonumber(until_ms), now_ms + tonumber(argv[2])) -- guard: slow_down_longest
  redis.call('HSET', keys[2], argv[1], string.format('%s %s %s %.0f', began, calls, tokens, until_ms))
  return { 'waits', whole(until_ms) }
end
register('slow_down', slow_down, { 'allow-oom' })
