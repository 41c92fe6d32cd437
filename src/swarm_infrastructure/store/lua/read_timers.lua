-- read_timers: when timers ticked last. One that is new begins now; one whose description changed goes on from its last tick.
-- KEYS     1 bus  2 timers
-- ARGV     per timer: name, description
-- Returns  {now_ms, per timer: last_ms}
local function read_timers(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local answer = { whole(now_ms) }
  for i = 1, #argv, 2 do
    local known = redis.call('HGET', keys[2], argv[i])
    local last_ms, text = string.match(known or '', '^(%d+)|(.*)$')
    if not last_ms or text ~= argv[i + 1] then
      redis.call('HSET', keys[2], argv[i], (last_ms or whole(now_ms)) .. '|' .. argv[i + 1])
    end
    answer[#answer + 1] = last_ms or whole(now_ms)
  end
  return answer
end
register('read_timers', read_timers)
