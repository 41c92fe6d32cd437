-- Changes of one call, collected first and written together at the end: validate everything, then write, because Redis
-- does not roll back. Items that change alike share one event entry, with a row each: `id version previous-event`, and
-- agent and token where they are not the entry's. A row of nothing but an id says the same as the row before it.
local function collect_changes(items, events, counts, request)
  return {
    items = items, events = events, counts = counts, request = request or '',
    groups = {}, groups_by_key = {}, last = nil, zadd = {}, zadd_keys = {}, zrem = {}, zrem_keys = {}, bells = {}, tally = {},
    -- of each item that changes, in the order of the changes; `texts` are the new records, once they are written
    n = 0, ids = {}, stamp_of = {}, previous = {}, owns = {}, texts = {},
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
    group = { kind = kind, from = from, to = to, reason = reason, trace = trace, places = {} }
    changes.groups_by_key[key] = group
    changes.groups[#changes.groups + 1] = group
  end
  changes.last = group
  return group
end

-- entrants, leavers: what goes into a line or `timed` (score, id, score, id, …), and what goes out of one.
local function entrants(changes, key, bell)
  local added = changes.zadd[key]
  if not added then
    added = {}
    changes.zadd[key] = added
    changes.zadd_keys[#changes.zadd_keys + 1] = key
  end
  if bell then changes.bells[key] = bell end
  return added
end

local function leavers(changes, key)
  local removed = changes.zrem[key]
  if not removed then
    removed = {}
    changes.zrem[key] = removed
    changes.zrem_keys[#changes.zrem_keys + 1] = key
  end
  return removed
end

local function put_in(changes, key, score, id, bell)
  local added = entrants(changes, key, bell)
  local n = #added
  added[n + 1], added[n + 2] = score, id
end

local function take_out(changes, key, id)
  local removed = leavers(changes, key)
  removed[#removed + 1] = id
end

-- A stamp is what a call makes of all items that were in one state: worked out once, and pressed on each of them.
-- stamp_of: their state is `text` then, of this version, as they did `kind` and went from one lane to another ('' for birth
-- and death). Whoever makes it may say which sorted set they leave (`out`: of `leavers`), which they enter (`into`: of
-- `entrants`) and what each of them adds to counters (`counted`: key, field, by how much, key, …).
local function stamp_of(changes, text, version, kind, from, to, agent, token, reason, trace)
  return {
    group = group_of(changes, kind, from, to, reason, trace), text = text, version = version, agent = agent, token = token,
    out = nil, into = nil, counted = nil,
  }
end

-- press: this stamp is what becomes of item `id`, whose newest event so far is `previous`; `own` as `split_record` gives it,
-- `score` where it enters a sorted set.
local function press(changes, stamp, id, previous, own, score)
  local n, places, out, into = changes.n + 1, stamp.group.places, stamp.out, stamp.into
  changes.n = n
  changes.ids[n], changes.stamp_of[n], changes.previous[n], changes.owns[n] = id, stamp, previous, own
  places[#places + 1] = n
  if out then out[#out + 1] = id end
  if into then
    local last = #into
    into[last + 1] = score
    into[last + 2] = id
  end
end

-- change: one item whose new state is `record` does `kind` and goes from one lane to another.
local function change(changes, id, record, kind, from, to, agent, token, reason, trace)
  local stamp = stamp_of(changes, state_text(record), record.version, kind, from, to, agent, token, reason, trace)
  press(changes, stamp, id, record.event, pack_own(record))
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

-- write_event: one entry for the items of a group, and what they add to counters. Returns its id.
local function write_event(changes, group)
  local ids, stamps, previous, places, rows = changes.ids, changes.stamp_of, changes.previous, group.places, {}
  local first, many = stamps[places[1]], {}
  local stamp, before
  for i = 1, #places do
    local n = places[i]
    many[stamps[n]] = (many[stamps[n]] or 0) + 1
    if stamps[n] == stamp and previous[n] == before then
      rows[i] = ids[n]
    else
      stamp, before = stamps[n], previous[n]
      rows[i] = ids[n] .. ' ' .. stamp.version .. ' ' .. before
      if stamp.agent ~= first.agent or stamp.token ~= first.token then
        rows[i] = rows[i] .. ' ' .. stamp.agent .. ' ' .. stamp.token
      end
    end
  end
  for each, times in pairs(many) do
    local counted = each.counted or {}
    for i = 1, #counted, 3 do count(changes, counted[i], counted[i + 1], counted[i + 2] * times) end
  end
  return redis.call('XADD', changes.events, '*', 'kind', group.kind, 'from', group.from, 'to', group.to,
    'agent', first.agent, 'token', first.token, 'reason', group.reason, 'trace', group.trace, 'request', changes.request,
    'items', table.concat(rows, ','))
end

-- read_rows: what `write_event` wrote: {id, version, previous event, agent, token} of each item, '' where they are the entry's.
local function read_rows(items)
  local rows, version, previous, agent, token = {}, nil, nil, nil, nil
  for id, more in string.gmatch(items, '([^ ,]+)([^,]*)') do
    if more ~= '' then version, previous, agent, token = string.match(more, '^ (%d+) (%S*) ?(%S*) ?(%d*)$') end
    if version then rows[#rows + 1] = { id, version, previous, agent, token } end
  end
  return rows
end

local BAR = 124 -- as a byte

local function write_group(changes, group, stored)
  local event = write_event(changes, group)
  if group.to ~= '' then
    local ids, stamps, previous, owns, texts = changes.ids, changes.stamp_of, changes.previous, changes.owns, changes.texts
    local start, at, byte, places = event .. '|', #stored, string.byte, group.places
    for i = 1, #places do
      local n = places[i]
      local own = owns[n]
      if byte(own) == BAR and previous[n] ~= '' then own = (string.match(previous[n], '^%d+') or '') .. own end
      local text = start .. own .. '|' .. stamps[n].text
      texts[n] = text
      stored[at + 1] = ids[n]
      stored[at + 2] = text
      at = at + 2
    end
  end
  if group.from ~= group.to then
    local many = #group.places
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
  for _, group in ipairs(changes.groups) do
    if #group.places > 0 then write_group(changes, group, stored) end
  end
  if #stored > 0 then redis.call('HSET', changes.items, unpack(stored)) end
  for _, key in ipairs(changes.zrem_keys) do
    if #changes.zrem[key] > 0 then redis.call('ZREM', key, unpack(changes.zrem[key])) end
  end
  for _, key in ipairs(changes.zadd_keys) do
    if #changes.zadd[key] > 0 then redis.call('ZADD', key, unpack(changes.zadd[key])) end
  end
  for key, fields in pairs(changes.tally) do
    for field, n in pairs(fields) do
      if n ~= 0 and redis.call('HINCRBY', key, field, n) == 0 and key == changes.counts then redis.call('HDEL', key, field) end
    end
  end
  for _, key in ipairs(changes.zadd_keys) do
    local bell = #changes.zadd[key] > 0 and changes.bells[key]
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
    for _, row in ipairs(read_rows(fields.items)) do
      if row[1] == id then
        local became = tonumber(row[2])
        if became <= version + 1 then return became == version + 1 and fields.request == request end
        entry = row[3]
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
