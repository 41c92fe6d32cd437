-- heartbeat: agents say that they live, on the server's clock; also when Redis is out of memory.
-- KEYS     1 board  2 agents  3 beats  4 gates  5 orders
-- ARGV     per agent: id, role, description (JSON) or '' for the one already there
-- Returns  {now_ms, per agent the gate that is shut or '', then per agent its order, or 'unknown' if it never introduced itself, or ''}
local function heartbeat(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local agents, answer = {}, { whole(now_ms) }
  for i = 1, #argv, 3 do
    agents[#agents + 1] = { id = argv[i], role = argv[i + 1] }
    if argv[i + 2] ~= '' then redis.call('HSET', keys[2], argv[i], argv[i + 2]) end
    redis.call('ZADD', keys[3], now_ms, argv[i])
  end
  for i, gate in ipairs(gates_of(keys[4], agents, now_ms)) do answer[i + 1] = gate or '' end
  for i, agent in ipairs(agents) do
    local known = redis.call('HEXISTS', keys[2], agent.id) == 1
    answer[1 + #agents + i] = redis.call('HGET', keys[5], agent.id) or (known and '' or 'unknown')
  end
  return answer
end
register('heartbeat', heartbeat, { 'allow-oom' })
