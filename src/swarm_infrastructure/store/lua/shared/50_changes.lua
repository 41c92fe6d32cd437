-- Changes of one call, collected first and written together at the end: validate everything, then write, because Redis
-- does not roll back. Items that change alike share one event entry.
local function collect_changes(items, events, counts)
  return {
    items = items, events = events, counts = counts,
    groups = {}, groups_by_key = {}, zadd = {}, zadd_keys = {}, zrem = {}, zrem_keys = {}, bells = {},
    tally = {}, tally_fields = {},
  }
end

-- change: item `id`, whose new state is `record`, does `kind` and goes from one lane to another ('' for birth and death).
local function change(changes, id, record, kind, from, to, agent, token, reason, trace)
  local key = table.concat({ kind, from, to, agent, token, reason, trace }, '\n')
  local group = changes.groups_by_key[key]
  if not group then
    group = { kind = kind, from = from, to = to, agent = agent, token = token, reason = reason, trace = trace, rows = {} }
    changes.groups_by_key[key] = group
    changes.groups[#changes.groups + 1] = group
  end
  group.rows[#group.rows + 1] = { id = id, record = record }
end

local function put_in(changes, key, score, id, bell)
  local added = changes.zadd[key]
  if not added then
    added = {}
    changes.zadd[key] = added
    changes.zadd_keys[#changes.zadd_keys + 1] = key
  end
  added[#added + 1] = score
  added[#added + 1] = id
  if bell then changes.bells[key] = bell end
end

local function take_out(changes, key, id)
  local removed = changes.zrem[key]
  if not removed then
    removed = {}
    changes.zrem[key] = removed
    changes.zrem_keys[#changes.zrem_keys + 1] = key
  end
  removed[#removed + 1] = id
end

-- count: add to a counter kept in `key` (claims held by an agent, …).
local function count(changes, key, field, n)
  local name = key .. '\n' .. field
  local row = changes.tally[name]
  if not row then
    row = { key = key, field = field, n = 0 }
    changes.tally[name] = row
    changes.tally_fields[#changes.tally_fields + 1] = name
  end
  row.n = row.n + n
end

-- ring: wake one idle agent of a lane. One token is enough: the agent that takes it rings again if work is left.
local function ring(bell)
  if redis.call('LLEN', bell) == 0 then redis.call('LPUSH', bell, '1') end
end

local function write_group(changes, group, stored)
  local rows, text = group.rows, {}
  for i, row in ipairs(rows) do
    text[i] = row.id .. ' ' .. row.record.version .. ' ' .. row.record.event
  end
  local event = redis.call('XADD', changes.events, '*', 'kind', group.kind, 'from', group.from, 'to', group.to,
    'agent', group.agent, 'token', group.token, 'reason', group.reason, 'trace', group.trace, 'items', table.concat(text, ','))
  for _, row in ipairs(rows) do
    local record = row.record
    if record.version > 1 and record.created_ms == '' then record.created_ms = string.match(record.event, '^%d+') end
    record.event = event
    if group.to ~= '' then
      stored[#stored + 1] = row.id
      stored[#stored + 1] = pack_record(record)
    end
  end
  if group.from ~= group.to then
    local n = #rows
    if group.from ~= '' then count(changes, changes.counts, group.from, -n) end
    if group.to ~= '' then count(changes, changes.counts, group.to, n) end
    local left, entered = string.match(group.from, '^[^/]*'), string.match(group.to, '^[^/]*')
    if left ~= entered then
      if left ~= '' then count(changes, changes.counts, left, -n) end
      if entered ~= '' then count(changes, changes.counts, entered, n) end
    end
  end
end

-- write_changes: events, records, lines, counters, doorbells: a handful of calls for the whole batch.
local function write_changes(changes)
  local stored = {}
  for _, group in ipairs(changes.groups) do write_group(changes, group, stored) end
  if #stored > 0 then redis.call('HSET', changes.items, unpack(stored)) end
  for _, key in ipairs(changes.zrem_keys) do redis.call('ZREM', key, unpack(changes.zrem[key])) end
  for _, key in ipairs(changes.zadd_keys) do redis.call('ZADD', key, unpack(changes.zadd[key])) end
  for _, name in ipairs(changes.tally_fields) do
    local row = changes.tally[name]
    if row.n ~= 0 and redis.call('HINCRBY', row.key, row.field, row.n) == 0 then redis.call('HDEL', row.key, row.field) end
  end
  for _, key in ipairs(changes.zadd_keys) do
    local bell = changes.bells[key]
    if bell then ring(bell) end
  end
end

-- remember_error: append one line of JSON to what went wrong with an item; the oldest lines go when 20 KB are full.
local ERROR_BYTES = 20480
local function remember_error(errors, id, line)
  local kept = redis.call('HGET', errors, id)
  local text = kept and (kept .. '\n' .. line) or line
  while #text > ERROR_BYTES do
    local cut = string.find(text, '\n', 1, true)
    if not cut then break end
    text = string.sub(text, cut + 1)
  end
  redis.call('HSET', errors, id, text)
end
