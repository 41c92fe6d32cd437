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
    local record = unpack_record(packed[row])
    local ends_ms = tonumber(redis.call('ZSCORE', timed, id) or 0)
    if not record then
      answers[row] = { 'lost', 'the item was deleted' }
    elseif record.token ~= token or record.holder == '' then -- guard: renew_token
      answers[row] = { 'lost', 'the item was taken back' }
    elseif ends_ms <= now_ms then -- guard: renew_lease
      answers[row] = { 'lost', 'the lease ran out' }
    elseif redis.call('HGET', keys[3], 'agent:' .. record.holder) == 'revoked' then -- guard: renew_revoked
      answers[row] = { 'lost', 'the agent was revoked' }
    else
      redis.call('ZADD', timed, 'XX', 'GT', whole(now_ms + lease_ms), id)
      answers[row] = 'renewed'
    end
  end
  return answers
end
register('renew', renew, { 'allow-oom' })
