-- Changes of one call, collected first and written together at the end: validate everything, then write, because Redis
-- does not roll back. Items that change alike share one event entry, with a row each: `id version previous-event`, and
-- agent and token where they are not the entry's. A row of nothing but an id says the same as the row before it.
-- Many calls change one item: `nil, nil, nil, nil` makes room for it at once, where an empty table is made anew as it grows.
local function collect_changes(items, events, counts, request)
  return {
    items = items, events = events, counts = counts, request = request or '',
    -- the newest group; all of them are in the array part
    group = nil, groups_by_key = nil,
    -- commands to be: { 'ZREM', key, id, … } or { 'ZADD', key, score, id, … }, and a doorbell or false, in turn
    moves = { nil, nil, nil, nil },
    tally = { nil, nil, nil, nil }, -- a key and what its fields grow by, in turn
    -- of each item that changes, in the order of the changes: its stamp, previous event and own part of the record, in turn; its
    -- id and, once it is written, its new record, in turn (items that leave the board get none, and leave in calls of their own)
    n = 0, pressed = { nil, nil, nil, nil }, stored = { nil, nil, nil, nil },
    nil, nil, nil, nil,
  }
end

local function group_key(group)
  return concat({ group.kind, group.from, group.to, group.reason, group.trace }, '\n')
end

-- group_of: items that share an event entry; the numbers of the items are in its array part.
local function group_of(changes, kind, from, to, reason, trace)
  local last = changes.group
  if last and last.from == from and last.to == to and last.kind == kind and last.reason == reason and last.trace == trace then
    return last
  end
  local group = { kind = kind, from = from, to = to, reason = reason, trace = trace, nil, nil, nil, nil }
  if last then -- it may be one of those before the last
    local known = changes.groups_by_key or { [group_key(last)] = last }
    local key = group_key(group)
    changes.groups_by_key = known
    changes.group = known[key] or group
    if known[key] then return known[key] end
    known[key] = group
  end
  changes.group = group
  changes[#changes + 1] = group
  return group
end

-- entrants, leavers: what goes into a line or `timed` (score, id, score, id, …), and what goes out of one. Few keys in a call.
local function move_of(changes, command, key, bell)
  local moves = changes.moves
  local n = #moves
  for i = 1, n, 2 do
    local move = moves[i]
    if move[2] == key and move[1] == command then
      moves[i + 1] = bell or moves[i + 1]
      return move
    end
  end
  local move = { command, key, nil, nil }
  moves[n + 1], moves[n + 2] = move, bell or false
  return move
end

local function entrants(changes, key, bell)
  return move_of(changes, 'ZADD', key, bell)
end

local function leavers(changes, key)
  return move_of(changes, 'ZREM', key)
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
-- `entrants`) and, in its array part, what each of them adds to counters: key, field, by how much, key, …
local function stamp_of(changes, text, version, kind, from, to, agent, token, reason, trace)
  return {
    group = group_of(changes, kind, from, to, reason, trace), text = text, version = version, agent = agent, token = token,
    times = 0, out = nil, into = nil, nil, nil, nil, nil, nil, nil,
  }
end

-- press: this stamp is what becomes of item `id`, whose newest event so far is `previous`; `own` as `split_record` gives it,
-- `score` where it enters a sorted set.
local function press(changes, stamp, id, previous, own, score)
  local n, pressed, stored, group, out, into = changes.n + 1, changes.pressed, changes.stored, stamp.group, stamp.out, stamp.into
  local at = 3 * n
  changes.n = n
  pressed[at - 2], pressed[at - 1], pressed[at] = stamp, previous, own
  stored[2 * n - 1], stored[2 * n] = id, false
  group[#group + 1] = n
  stamp.times = stamp.times + 1
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

-- count: add to a field of a hash of counters. Few hashes in a call.
local function count(changes, key, field, n)
  local tally = changes.tally
  for i = 1, #tally, 2 do
    if tally[i] == key then
      local fields = tally[i + 1]
      fields[field] = (fields[field] or 0) + n
      return
    end
  end
  local at = #tally
  tally[at + 1], tally[at + 2] = key, { [field] = n }
end

-- ring: wake one idle agent of a lane. One token is enough: the agent that takes it rings again if work is left.
local function ring(bell)
  if redis.call('LLEN', bell) == 0 then redis.call('LPUSH', bell, '1') end
end

-- write_event: one entry for the items of a group, and what they add to counters. Returns its id.
local function write_event(changes, group)
  local stored, pressed, rows, row = changes.stored, changes.pressed, nil, nil
  local first, stamp, before = pressed[3 * group[1] - 2], nil, nil
  for i = 1, #group do
    local n = group[i]
    local its, previous = pressed[3 * n - 2], pressed[3 * n - 1]
    if its == stamp and previous == before then
      row = stored[2 * n - 1]
    else
      stamp, before = its, previous
      row = stored[2 * n - 1] .. ' ' .. stamp.version .. ' ' .. before
      if stamp.agent ~= first.agent or stamp.token ~= first.token then row = row .. ' ' .. stamp.agent .. ' ' .. stamp.token end
      for k = 1, #stamp, 3 do count(changes, stamp[k], stamp[k + 1], stamp[k + 2] * stamp.times) end
      stamp.times = 0 -- they are counted
    end
    if rows then rows[i] = row elseif group[2] then rows = { row } end
  end
  return redis.call('XADD', changes.events, '*', 'kind', group.kind, 'from', group.from, 'to', group.to,
    'agent', first.agent, 'token', first.token, 'reason', group.reason, 'trace', group.trace, 'request', changes.request,
    'items', rows and concat(rows, ',') or row)
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
local ORDER = { 'ZREM', 'ZADD' } -- an item may leave a sorted set and enter it again

local function write_group(changes, group)
  local event = write_event(changes, group)
  local from, to = group.from, group.to
  if to ~= '' then
    local pressed, stored, start = changes.pressed, changes.stored, event .. '|'
    for i = 1, #group do
      local n = group[i]
      local previous, own = pressed[3 * n - 1], pressed[3 * n]
      if byte(own) == BAR and previous ~= '' then own = (match(previous, '^%d+') or '') .. own end
      stored[2 * n] = start .. own .. '|' .. pressed[3 * n - 2].text
    end
  end
  if from ~= to then
    local counts, many = changes.counts, #group
    if from ~= '' then count(changes, counts, from, -many) end
    if to ~= '' then count(changes, counts, to, many) end
    local left, entered = match(from, '^[^/]*'), match(to, '^[^/]*')
    if left ~= entered then
      if left ~= '' then count(changes, counts, left, -many) end
      if entered ~= '' then count(changes, counts, entered, many) end
    end
  end
end

-- write_changes: events, records, lines, counters, doorbells: a handful of calls for the whole batch.
local function write_changes(changes)
  local stored, moves, tally = changes.stored, changes.moves, changes.tally
  for i = 1, #changes do
    if changes[i][1] then write_group(changes, changes[i]) end
  end
  if stored[2] then redis.call('HSET', changes.items, unpack(stored)) end
  for _, command in ipairs(ORDER) do
    for i = 1, #moves, 2 do
      local move = moves[i]
      if move[1] == command and move[3] then redis.call(unpack(move)) end
    end
  end
  for i = 1, #tally, 2 do
    local key = tally[i]
    for field, n in pairs(tally[i + 1]) do
      if n ~= 0 and redis.call('HINCRBY', key, field, whole(n)) == 0 and key == changes.counts then
        redis.call('HDEL', key, field)
      end
    end
  end
  for i = 1, #moves, 2 do
    local bell = moves[i][3] and moves[i + 1]
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
