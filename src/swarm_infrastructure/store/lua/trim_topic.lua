-- trim_topic: drop what is older than the topic keeps, or more than it keeps, as far as every group has acknowledged it.
-- KEYS     1 bus  2 topics  then the topic's block
-- ARGV     1 how many topics ('1')  2-5 name, first key of its block, partitions, channel
-- Returns  how many entries went
local TRIM_ROUNDS = 20 -- of 100 entries in a partition: what is read to find where to cut
local function trim_topic(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local topic, trimmed = read_topics(keys, argv, 1)[1], 0
  if not topic then return 0 end
  local share = math.ceil(topic.keep_entries / topic.partitions)
  for _, stream in ipairs(topic.streams) do
    local needed = unacknowledged(stream)
    if topic.keep_ms > 0 then
      trimmed = trimmed + cut(stream, whole(math.max(0, now_ms - topic.keep_ms)) .. '-0', needed)
    end
    local rounds = topic.keep_entries > 0 and TRIM_ROUNDS or 0
    while rounds > 0 do
      rounds = rounds - 1
      local more = math.min(100, redis.call('XLEN', stream) - share)
      if more <= 0 then break end
      local rows = redis.call('XRANGE', stream, '-', '+', 'COUNT', more + 1)
      local ms, seq = id_parts(rows[more][1])
      local gone = cut(stream, whole(ms) .. '-' .. whole(seq + 1), needed)
      trimmed = trimmed + gone
      if gone == 0 then break end
    end
  end
  return trimmed
end
register('trim_topic', trim_topic, { 'allow-oom' })
