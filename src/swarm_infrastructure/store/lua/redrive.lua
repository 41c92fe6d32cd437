-- redrive: put dead letters back into the partition they came from, for the group that buried them alone.
-- KEYS     1 bus  2 topics  3 dead  then the topic's block
-- ARGV     1 how many topics ('1')  2-5 name, first key of its block, partitions, channel  then the ids of dead letters
-- Returns  {'redriven', how many}   {'full', topic, found, most, group}, {'topic'}: those before it are redriven
local DEAD_FACTS = { group = true, partition = true, entry = true, attempts = true, reason = true, error = true, only = true }
local function redrive(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local topics, at = read_topics(keys, argv, 1)
  local n, refused = 0, nil
  for i = at, #argv do
    local row = redis.call('XRANGE', keys[3], argv[i], argv[i])[1]
    if row then -- guard: redrive_once
      local facts, fields = by_name(row[2]), {}
      for j = 1, #row[2], 2 do
        if not DEAD_FACTS[row[2][j]] then
          fields[#fields + 1] = row[2][j]
          fields[#fields + 1] = row[2][j + 1]
        end
      end
      fields[#fields + 1] = 'only'
      fields[#fields + 1] = facts.group
      local message = { topic = topics[1], partition = facts.partition, fields = fields }
      refused = judge_message(message)
      if refused then break end -- guard: redrive_full
      put_message(message, now_ms)
      redis.call('XDEL', keys[3], argv[i])
      n = n + 1
    end
  end
  give_hints(topics)
  return refused or { 'redriven', n }
end
register('redrive', redrive)
