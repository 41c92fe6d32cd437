-- Changes of one call, collected first and written together at the end: validate everything, then write, because Redis
-- does not roll back. Items that change alike share one event entry, with a row each: `id version previous-event`, and
-- agent and token where they are not the entry's.
local function collect_changes(items, events, counts, request)
  return {
    items = items, events = events, counts = counts, request = request or '',
    groups = {}, groups_by_key = {}, last = nil, zadd = {}, zadd_keys = {}, zrem = {}, zrem_keys = {}, bells = {}, tally = {},
  }
end

local function group_of(changes, kind, from, to, reason, trace)
  local last = changes.last
  if last and last.from == from and last.to == to and last.kind == kind and last.reason == reason and last.trace == trace then
    return last
  end
  local key = table.concat({ kind, from, to, reason, trace }, '\n')
  local group = changes.groups_by_key[key]
  if not group then
    group = { kind = kind, from = from, to = to, reason = reason, trace = trace, ids = {}, records = {}, agents = {}, tokens = {} }
    changes.groups_by_key[key] = group
    changes.groups[#changes.groups + 1] = group
  end
  changes.last = group
  return group
end

-- change: item `id`, whose new state is `record`, does `kind` and goes from one lane to another ('' for birth and death).
local function change(changes, id, record, kind, from, to, agent, token, reason, trace)
  local group = group_of(changes, kind, from, to, reason, trace)
  local n = #group.ids + 1
  group.ids[n], group.records[n], group.agents[n], group.tokens[n] = id, record, agent, token
end

local function put_in(changes, key, score, id, bell)
  local added = changes.zadd[key]
  if not added then
    added = {}
    changes.zadd[key] = added
    changes.zadd_keys[#changes.zadd_keys + 1] = key
  end
  local n = #added
  added[n + 1], added[n + 2] = score, id
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

-- count: add to a field of a hash of counters.
local function count(changes, key, field, n)
  local fields = changes.tally[key]
  if not fields then
    fields = {}
    changes.tally[key] = fields
  end
  fields[field] = (fields[field] or 0) + n
end

-- ring: wake one idle agent of a lane. One token is enough: the agent that takes it rings again if work is left.
local function ring(bell)
  if redis.call('LLEN', bell) == 0 then redis.call('LPUSH', bell, '1') end
end

local function write_group(changes, group, stored)
  local ids, records, text = group.ids, group.records, {}
  local agent, token = group.agents[1], group.tokens[1]
  for i, record in ipairs(records) do
    local row = ids[i] .. ' ' .. record.version .. ' ' .. record.event
    if group.agents[i] ~= agent or group.tokens[i] ~= token then
      row = row .. ' ' .. group.agents[i] .. ' ' .. group.tokens[i]
    end
    text[i] = row
  end
  local event = redis.call('XADD', changes.events, '*', 'kind', group.kind, 'from', group.from, 'to', group.to,
    'agent', agent, 'token', token, 'reason', group.reason, 'trace', group.trace, 'request', changes.request,
    'items', table.concat(text, ','))
  local n = #stored
  for i, record in ipairs(records) do
    if record.created_ms == '' and record.event ~= '' then record.created_ms = string.match(record.event, '^%d+') end
    record.event = event
    if group.to ~= '' then
      record.text = pack_record(record)
      stored[n + 1], stored[n + 2] = ids[i], record.text
      n = n + 2
    end
  end
  if group.from ~= group.to then
    local many = #ids
    if group.from ~= '' then count(changes, changes.counts, group.from, -many) end
    if group.to ~= '' then count(changes, changes.counts, group.to, many) end
    local left, entered = string.match(group.from, '^[^/]*'), string.match(group.to, '^[^/]*')
    if left ~= entered then
      if left ~= '' then count(changes, changes.counts, left, -many) end
      if entered ~= '' then count(changes, changes.counts, entered, many) end
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
  for key, fields in pairs(changes.tally) do
    for field, n in pairs(fields) do
      if n ~= 0 and redis.call('HINCRBY', key, field, n) == 0 and key == changes.counts then redis.call('HDEL', key, field) end
    end
  end
  for _, key in ipairs(changes.zadd_keys) do
    local bell = changes.bells[key]
    if bell then ring(bell) end
  end
end

-- made: was it this request that gave an item the version after `version`? Its event says so, whatever came later.
local FARTHEST = 100 -- changes to look back: more writers than ever meet at one item
local function made(events, id, record, version, request)
  local entry = record.event
  for _ = 1, FARTHEST do
    local found = redis.call('XRANGE', events, entry, entry)[1]
    if not found then return false end
    local fields = {}
    for i = 1, #found[2], 2 do fields[found[2][i]] = found[2][i + 1] end
    entry = ''
    for each, became, before in string.gmatch(fields.items, '([^ ,]+) (%d+) ([^ ,]*)[^,]*') do
      if each == id then
        if tonumber(became) <= version + 1 then return tonumber(became) == version + 1 and fields.request == request end
        entry = before
        break
      end
    end
    if entry == '' then return false end
  end
  return false
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
