-- renew: push the end of leases out, never in. A claim that ran out is not revived, even if nobody took the item yet.
-- KEYS     1 board  2 items  3 gates   then `timed` of each lane claimed from
-- ARGV     per claim: id, token, lane (1 = first), lease_ms (> 0)
-- Returns  one answer per claim: 'renewed'   {'lost', why}
local function renew(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local answers, ids = {}, {}
  for i = 1, #argv, 4 do ids[#ids + 1] = argv[i] end
  local packed = redis.call('HMGET', keys[2], unpack(ids))
  for row, id in ipairs(ids) do
    local at = (row - 1) * 4 + 1
    local token, timed, lease_ms = argv[at + 1], keys[3 + tonumber(argv[at + 2])], tonumber(argv[at + 3])
    local lost = claim_lost(unpack_record(packed[row]), token, redis.call('ZSCORE', timed, id), keys[3], now_ms)
    if lost then
      answers[row] = { 'lost', lost }
    else
      redis.call('ZADD', timed, 'XX', 'GT', whole(now_ms + lease_ms), id)
      answers[row] = 'renewed'
    end
  end
  return answers
end
register('renew', renew, { 'allow-oom' })
