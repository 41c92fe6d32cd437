-- Steps that topics share: publishing, seats, dead letters.
-- A topic's block of keys is `recent`, `recent` (ids published lately, two generations), then each of its partitions.
-- What is asked of a topic: name, where its block begins in KEYS, how many partitions the caller knows, channel of its hints.
local RECENT_MS = 600000 -- an id is known for at least this long
local RECENT_MOST = 250000 -- or for so many ids, whichever is less: what a generation may cost is bounded
local CONSUMER = 'swarm' -- in every native group: who works is decided by seats; names of dead processes would pile up

-- read_settings: what the registry holds of a topic, partitions|keep_ms|keep_entries|most (0: no limit), or nil.
local function read_settings(registry, name)
  local text = redis.call('HGET', registry, name) or ''
  local partitions, keep_ms, keep_entries, most = string.match(text, '^(%d+)|(%d+)|(%d+)|(%d+)$')
  if not partitions then return nil end
  return {
    partitions = tonumber(partitions), keep_ms = tonumber(keep_ms), keep_entries = tonumber(keep_entries),
    most = tonumber(most),
  }
end

-- read_topics: the topics named in ARGV from `at` (their number, then four words each); false for one that is not as the
-- caller knows it. Returns them and where ARGV goes on.
local function read_topics(keys, argv, at)
  local topics, n = {}, tonumber(argv[at])
  at = at + 1
  for i = 1, n do
    local name, first, partitions, channel = unpack(argv, at, at + 3)
    local topic = read_settings(keys[2], name)
    if topic and topic.partitions == tonumber(partitions) then -- guard: topic_partitions
      topic.name, topic.channel, topic.streams = name, channel, {}
      topic.recent = { keys[tonumber(first)], keys[tonumber(first) + 1] }
      for p = 1, topic.partitions do topic.streams[p] = keys[tonumber(first) + 1 + p] end
      topics[i] = topic
    else
      topics[i] = false
    end
    at = at + 4
  end
  return topics, at
end

-- add_entry: append to a stream at the time of this call. A clock that went back gives the next id after the last one.
local function add_entry(stream, now_ms, fields)
  local id = redis.pcall('XADD', stream, whole(now_ms) .. '-*', unpack(fields))
  if type(id) == 'table' then id = redis.call('XADD', stream, '*', unpack(fields)) end -- guard: entry_clock
  return id
end

local function id_parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function id_before(a, b)
  local a_ms, a_seq = id_parts(a)
  local b_ms, b_seq = id_parts(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

local function by_name(row)
  local fields = {}
  for i = 1, #row, 2 do fields[row[i]] = row[i + 1] end
  return fields
end

-- unacknowledged: the oldest entry of a partition that some group still needs, or nil if none does.
local function unacknowledged(stream)
  local oldest
  if redis.call('EXISTS', stream) == 0 then return nil end
  for _, row in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local group = by_name(row)
    local needed
    if group.pending > 0 then -- guard: trim_pending
      needed = redis.call('XPENDING', stream, group.name)[2]
    else
      local ms, seq = id_parts(group['last-delivered-id'])
      needed = whole(ms) .. '-' .. whole(seq + 1)
    end
    if not oldest or id_before(needed, oldest) then oldest = needed end
  end
  return oldest
end

-- cut: drop what is older than `id`, but nothing that a group still needs. Returns how many entries went.
local function cut(stream, id, needed)
  if needed and id_before(needed, id) then id = needed end -- guard: trim_needed
  return redis.call('XTRIM', stream, 'MINID', '=', id)
end

local function standing_of(topic)
  local standing = 0
  for _, stream in ipairs(topic.streams) do standing = standing + redis.call('XLEN', stream) end
  return standing
end

-- laggard: the group that has most before it, for the error that names it.
local function laggard(topic)
  local before, worst, most = {}, '', -1
  for _, stream in ipairs(topic.streams) do
    for _, row in ipairs(redis.call('EXISTS', stream) == 1 and redis.call('XINFO', 'GROUPS', stream) or {}) do
      local group = by_name(row)
      before[group.name] = (before[group.name] or 0) + group.pending + (tonumber(group.lag or 0) or 0)
      if before[group.name] > most then worst, most = group.name, before[group.name] end
    end
  end
  return worst
end

-- judge_room: why a topic takes no more, or nil. At its bound, what every group has acknowledged makes room.
local function judge_room(topic)
  if topic.most == 0 then return nil end
  topic.standing = topic.standing or standing_of(topic)
  if topic.standing < topic.most then return nil end
  if not topic.cleared then
    topic.cleared = true
    for _, stream in ipairs(topic.streams) do cut(stream, '9007199254740991-0', unacknowledged(stream)) end
    topic.standing = standing_of(topic)
    if topic.standing < topic.most then return nil end
  end
  return { 'full', topic.name, topic.standing, topic.most, laggard(topic) } -- guard: topic_most
end

-- recent_of: the two generations of ids, the younger one first. Once its time is up, or it is full, the older one goes.
local function recent_of(topic, now_ms)
  local a, b = topic.recent[1], topic.recent[2]
  local began_a, began_b = tonumber(redis.call('HGET', a, '') or 0), tonumber(redis.call('HGET', b, '') or 0)
  if began_b > began_a then a, b, began_a = b, a, began_b end
  if now_ms - began_a >= RECENT_MS or redis.call('HLEN', a) > RECENT_MOST then
    redis.call('UNLINK', b)
    if now_ms - began_a >= 2 * RECENT_MS then redis.call('UNLINK', a) end
    a, b = b, a
    redis.call('HSET', a, '', whole(now_ms))
    redis.call('PEXPIRE', a, 2 * RECENT_MS)
  end
  topic.recent = { a, b }
  topic.rotated = true
end

-- find_recent: where the message of this id was put when it was published before, or nil.
local function find_recent(topic, id, now_ms)
  if not topic.rotated then recent_of(topic, now_ms) end
  return redis.call('HGET', topic.recent[1], id) or redis.call('HGET', topic.recent[2], id) or nil
end

-- read_message: eight words of ARGV: topic (1 = the first of this call), partition, id, key, type, content type,
-- traceparent, body.
local function read_message(topics, argv, at)
  local index, partition, id, key, kind, content, trace, body = unpack(argv, at, at + 7)
  return {
    topic = topics[tonumber(index)], partition = partition, id = id,
    fields = { 'id', id, 'key', key, 'type', kind, 'content_type', content, 'traceparent', trace, 'body', body },
  }
end

-- judge_message: why a message can't be published, or nil.
local function judge_message(message)
  if not message.topic then return { 'topic' } end -- guard: publish_topic
  return judge_room(message.topic)
end

-- put_message: into its partition. It was judged before. Returns its entry's id.
local function put_message(message, now_ms)
  local topic = message.topic
  if topic.standing then topic.standing = topic.standing + 1 end -- guard: publish_counts
  topic.told = true
  return add_entry(topic.streams[tonumber(message.partition) + 1], now_ms, message.fields)
end

-- publish_message: once for each id. Returns {'stored', partition, entry}, {'duplicate', partition, entry} or a refusal.
-- `judged`: it was judged before, together with others; then it has its place, even if they fill the topic up.
local function publish_message(message, now_ms, judged)
  if not message.topic then return { 'topic' } end
  local known = find_recent(message.topic, message.id, now_ms)
  if known then return { 'duplicate', string.match(known, '^(%d+)/(.+)$') } end -- guard: publish_once
  local refused = not judged and judge_message(message)
  if refused then return refused end
  local entry = put_message(message, now_ms)
  redis.call('HSET', message.topic.recent[1], message.id, message.partition .. '/' .. entry)
  return { 'stored', message.partition, entry }
end

-- give_hints: one for each topic that got something. Only a hint: whoever misses it polls.
local function give_hints(topics)
  for _, topic in ipairs(topics) do
    if topic and topic.told then redis.call('PUBLISH', topic.channel, '1') end
  end
end

-- A seat is the right to work on one partition for a group: holder, request, token, until_ms, not_before_ms, head, used,
-- ended; between blanks, '-' for nothing. `head` is the entry that is next and `used` the attempts that it has had; `ended`
-- is the last ending, token:entry:kind:answer, for a caller whose reply was lost.
local function unpack_seat(text)
  local holder, request, token, until_ms, not_before_ms, head, used, ended =
    string.match(text or '', '^(%S+) (%S+) (%d+) (%d+) (%d+) (%S+) (%d+) (%S+)$')
  return {
    holder = holder or '-', request = request or '-', token = token or '0', until_ms = tonumber(until_ms or 0),
    not_before_ms = tonumber(not_before_ms or 0), head = head or '-', used = tonumber(used or 0), ended = ended or '-',
  }
end

local function pack_seat(seat)
  return table.concat({
    seat.holder, seat.request, seat.token, whole(seat.until_ms), whole(seat.not_before_ms), seat.head, whole(seat.used),
    seat.ended,
  }, ' ')
end

-- leave_seat: nobody's any more. `head` has had `used` attempts ('-': whatever comes is new).
local function leave_seat(seat, head, used, not_before_ms)
  seat.holder, seat.request, seat.until_ms = '-', '-', 0
  seat.head, seat.used, seat.not_before_ms = head, used, not_before_ms
end

-- bury: a message goes to the dead letters, and the group is done with it.
local function bury(dead, stream, group, partition, entry, fields, now_ms, attempts, reason, text)
  local row = {}
  for i, word in ipairs(fields) do row[i] = word end
  local facts = {
    'group', group, 'partition', whole(tonumber(partition)), 'entry', entry, 'attempts', whole(attempts),
    'reason', reason, 'error', text,
  }
  for _, word in ipairs(facts) do row[#row + 1] = word end
  redis.call('XACK', stream, group, entry)
  return add_entry(dead, now_ms, row)
end

-- open_partitions: a native group on each partition, beginning after `id` ('0': at the earliest, '$': with what comes).
-- A place beyond the end is the end: else what comes in the same millisecond in another partition, or before that time, would
-- be passed over. How far behind it is Redis knows at the ends; in between it is told, where few enough entries follow.
local COUNTED = 1000
local function open_partitions(keys, first, group, id)
  for i = first, #keys do
    local after, read = id, nil
    if id ~= '0' and id ~= '$' then
      local stream = redis.call('EXISTS', keys[i]) == 1 and by_name(redis.call('XINFO', 'STREAM', keys[i]))
      if not stream then
        after = '0' -- guard: open_empty
      elseif id_before(stream['last-generated-id'], id) then -- guard: open_beyond
        after = '$'
      else
        local behind = #redis.call('XRANGE', keys[i], '(' .. id, '+', 'COUNT', COUNTED + 1)
        if behind <= COUNTED then read = whole(stream['entries-added'] - behind) end
      end
    end
    local words = { 'XGROUP', 'CREATE', keys[i], group, after, 'MKSTREAM' }
    if read then words[7], words[8] = 'ENTRIESREAD', read end
    redis.pcall(unpack(words)) -- BUSYGROUP: somebody made it by hand, and it stands where it stands
  end
end
