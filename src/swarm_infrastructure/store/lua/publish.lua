-- publish: put messages into topics, each id once. What one process publishes at the same moment travels together.
-- KEYS     1 bus  2 topics  then per topic its block (see 80_topics)
-- ARGV     how many topics, then per topic: name, first key of its block, partitions, channel
--          then per message: topic, partition, id, key, type, content type, traceparent, body
-- Returns  one answer per message: {'stored', partition, entry}   {'duplicate', partition, entry}: of the first one
--          {'full', topic, found, most, group that lags most}   {'topic'}: it is not open, or has other partitions
local function publish(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local topics, at = read_topics(keys, argv, 1)
  local answers = {}
  for i = at, #argv, 8 do
    answers[#answers + 1] = publish_message(read_message(topics, argv, i), now_ms)
  end
  give_hints(topics)
  return answers
end
register('publish', publish)
