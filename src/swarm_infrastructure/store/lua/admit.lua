-- admit: may a call be made now under a rate limit that the whole fleet shares? Counted by a window that its first call opens.
-- KEYS     1 board  2 rates
-- ARGV     1 name  2 calls per window  3 tokens per window ('' without a limit)  4 tokens of this call  5 window_ms
-- Returns  {'yes'}   {'wait', ms}: the window is full, or the provider asked everybody to wait
local function admit(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local began, calls, tokens, until_ms = string.match(redis.call('HGET', keys[2], argv[1]) or '0 0 0 0', '^(%d+) (%d+) (%d+) (%d+)$')
  began, calls, tokens, until_ms = tonumber(began), tonumber(calls), tonumber(tokens), tonumber(until_ms)
  if until_ms > now_ms then return { 'wait', whole(until_ms - now_ms) } end -- guard: admit_wait
  if now_ms >= began + tonumber(argv[5]) or now_ms < began then began, calls, tokens = now_ms, 0, 0 end
  local most_calls, most_tokens, asked = tonumber(argv[2]), tonumber(argv[3]), tonumber(argv[4])
  local full = most_calls and calls + 1 > most_calls -- guard: admit_calls
  -- a call greater than the whole limit goes alone into an empty window, or it would wait for ever
  if most_tokens and calls > 0 and tokens + asked > most_tokens then full = true end -- guard: admit_tokens
  if full then return { 'wait', whole(began + tonumber(argv[5]) - now_ms) } end
  redis.call('HSET', keys[2], argv[1], string.format('%.0f %.0f %.0f 0', began, calls + 1, tokens + asked))
  return { 'yes' }
end
register('admit', admit)
