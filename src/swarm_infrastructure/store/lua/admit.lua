-- admit: may a call be made now, past a breaker and under a rate limit that the whole fleet shares? (see `enter_backend`)
-- KEYS     1 board  2 rates  3 breakers
-- ARGV     1 id of the call  then as `enter_backend` takes them: rate, calls and tokens per window, window_ms, tokens of this call,
--          breaker, probes at once, probe_ms
-- Returns  {'yes', how it passed the breaker: '' | 'probe'}   {'wait', ms}   {'open', ms}
local function admit(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local refused, pass = enter_backend(keys[2], keys[3], now_ms, argv[1], argv, 2)
  return refused or { 'yes', pass }
end
register('admit', admit)
