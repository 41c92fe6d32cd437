#!lua name=peers_ceiling
-- The least that an honest queue does in Redis: a hash an item, a fencing token, leases, and an event for each step.
-- It refuses what is not claimed under its token, and does nothing else: no priorities, sections, counters, retries,
-- dedup or checks. What a C client gets out of it is the ceiling that every rate is held against.
--
-- KEYS of all  1 prefix of the item hashes   2 waiting zset: order   3 leases zset: end (ms)   4 done zset: when (ms)
--              5 events stream

-- fill: ARGV 1 first number  2 how many  3 payload
local function fill(keys, argv)
  for number = tonumber(argv[1]), tonumber(argv[1]) + tonumber(argv[2]) - 1 do
    redis.call('HSET', keys[1] .. number, 'payload', argv[3], 'status', 'waiting')
    redis.call('ZADD', keys[2], number, number)
    redis.call('XADD', keys[5], '*', 'kind', 'submitted', 'item', number)
  end
end

-- claim: ARGV 1 how many  2 agent  3 now_ms  4 lease_ms.  Returns {item, token, payload} for each
local function claim(keys, argv)
  local claimed = {}
  local popped = redis.call('ZPOPMIN', keys[2], argv[1])
  for i = 1, #popped, 2 do
    local id, item = popped[i], keys[1] .. popped[i]
    local token = redis.call('HINCRBY', item, 'token', 1)
    redis.call('HSET', item, 'status', 'active', 'agent', argv[2], 'since_ms', argv[3])
    redis.call('ZADD', keys[3], argv[3] + argv[4], id)
    redis.call('XADD', keys[5], '*', 'kind', 'claimed', 'item', id, 'agent', argv[2])
    claimed[#claimed + 1] = { id, token, redis.call('HGET', item, 'payload') }
  end
  return claimed
end

-- complete: ARGV 1 now_ms, then item, token, result for each.  Returns how many were completed
local function complete(keys, argv)
  local completed = 0
  for i = 2, #argv, 3 do
    local id, item = argv[i], keys[1] .. argv[i]
    local status, token = unpack(redis.call('HMGET', item, 'status', 'token'))
    if status == 'active' and token == argv[i + 1] then
      redis.call('HSET', item, 'status', 'done', 'result', argv[i + 2], 'since_ms', argv[1])
      redis.call('ZREM', keys[3], id)
      redis.call('ZADD', keys[4], argv[1], id)
      redis.call('XADD', keys[5], '*', 'kind', 'completed', 'item', id)
      completed = completed + 1
    end
  end
  return completed
end

redis.register_function('ceiling_fill', fill)
redis.register_function('ceiling_claim', claim)
redis.register_function('ceiling_complete', complete)
