-- tick: let a timer tick once, whoever sees first that it is due: its last tick and its messages change in one step.
-- KEYS     1 bus  2 topics  3 timers  then per topic its block
-- ARGV     1 timer  2 last_ms, as the caller knows it  3 last_ms from now on  4 how many topics, then per topic: name, first
--          key of its block, partitions, channel  then per message: topic, partition, id, key, type, content type, traceparent, body
-- Returns  {'ticked'}   {'other', last_ms}: somebody else let it tick   {'early', now_ms}
--          {'full', topic, found, most, group}   {'topic'}: nothing happened, it is due as before
local function tick(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local last_ms, text = string.match(redis.call('HGET', keys[3], argv[1]) or '', '^(%d+)|(.*)$')
  if last_ms ~= argv[2] then return { 'other', last_ms or '' } end -- guard: tick_once
  if tonumber(argv[3]) > now_ms then return { 'early', whole(now_ms) } end -- guard: tick_early
  local topics, at = read_topics(keys, argv, 4)
  local messages = {}
  for i = at, #argv, 8 do
    local message = read_message(topics, argv, i)
    local refused = judge_message(message)
    if refused then return refused end -- guard: tick_full
    messages[#messages + 1] = message
  end
  for _, message in ipairs(messages) do publish_message(message, now_ms, true) end
  redis.call('HSET', keys[3], argv[1], argv[3] .. '|' .. text)
  give_hints(topics)
  return { 'ticked' }
end
register('tick', tick)
