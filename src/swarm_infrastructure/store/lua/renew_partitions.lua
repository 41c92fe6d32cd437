-- renew_partitions: push the end of a consumer's leases out, never in. One that ran out is not revived.
-- KEYS     1 bus  2 group
-- ARGV     1 holder  2 lease_ms (> 0)  then per partition: partition, token
-- Returns  one answer per partition: 'renewed'   {'lost', why}
local function renew_partitions(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local answers = {}
  for i = 3, #argv, 2 do
    local seat = unpack_seat(redis.call('HGET', keys[2], argv[i]))
    local answer = 'renewed'
    if seat.token ~= argv[i + 1] then -- guard: renew_seat_token
      answer = { 'lost', 'the partition is somebody else\'s' }
    elseif seat.holder ~= argv[1] then -- guard: renew_seat_holder
      answer = { 'lost', 'the partition was given up' }
    elseif seat.until_ms <= now_ms then -- guard: renew_seat_lease
      answer = { 'lost', 'the lease ran out' }
    else
      seat.until_ms = math.max(seat.until_ms, now_ms + tonumber(argv[2]))
      redis.call('HSET', keys[2], argv[i], pack_seat(seat))
    end
    answers[#answers + 1] = answer
  end
  return answers
end
register('renew_partitions', renew_partitions, { 'allow-oom' })
