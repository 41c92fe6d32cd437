-- leave_breaker: a call that passed a breaker has ended, or an operator opens or closes one; also when Redis is out of memory.
-- KEYS     1 board  2 breakers
-- ARGV     1 name  2 id of the call  3 ok | failed | unknown | open | close  4 failures in a row that open it  5 recovery_ms
--          6 successes of probes that close it
-- Returns  counted | opened | closed | late
local function leave(keys, argv)
  local _, now_ms = read_clock(keys[1])
  if argv[3] == 'close' then
    redis.call('HDEL', keys[2], argv[1])
    return 'closed'
  elseif argv[3] == 'open' then
    local breaker = breakers.read(nil)
    breaker.state, breaker.until_ms = 'open', now_ms + tonumber(argv[5])
    keep_breaker(keys[2], argv[1], breaker)
    return 'opened'
  end
  return leave_breaker(keys[2], argv[1], now_ms, argv[2], argv[3], tonumber(argv[4]), tonumber(argv[5]), tonumber(argv[6]))
end
register('leave_breaker', leave, { 'allow-oom' })
