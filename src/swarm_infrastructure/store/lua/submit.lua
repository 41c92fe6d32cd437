-- submit: put new items on the board; each is accepted once, whoever submits it and however often.
-- KEYS     1 board  2 items  3 payloads  4 events  5 counts  6 seq  7 dedup   then per lane: line, timed, bell
-- ARGV     1 request  2 agent  3 trace  then per item: id, lane (1 = first), priority (0-9), delay_ms, dedup key or '',
--          dedup lifetime in ms ('0': for ever), payload (JSON)
-- Returns  one answer per item: 'submitted'   {'exists', section}   {'duplicate', id of the first}
--          {'full', count, cap}   {'place', lane}   {'large', bytes, limit}   {'priority', p}
-- Event    submitted   '' → lane
local PRIORITIES = {}
for n = 0, 9 do PRIORITIES[n .. ''] = true end

-- read_targets: the lanes of this call, with what the board says of them, and the time: one question to the board.
local function read_targets(keys)
  local fields, targets = { 'clock_offset_ms', nil, nil, nil }, { nil, nil, nil, nil }
  for first = 8, #keys, 3 do
    local parts, n = lane_at(keys[first]), #targets + 1
    fields[2 * n], fields[2 * n + 1] = parts.place_rule, parts.limits_rule
    targets[n] = {
      line = keys[first], timed = keys[first + 1], bell = keys[first + 2], parts = parts, place = false, limits = false,
      stamp = false, waiting = false,
    }
  end
  local found = redis.call('HMGET', keys[1], unpack(fields))
  for n = 1, #targets do
    targets[n].place, targets[n].limits = found[2 * n], limits_in(found[2 * n + 1] or '')
  end
  return targets, clock_at(found[1])
end

local function judge_mark(context, mark)
  if not context.marked then context.marked, context.marks, context.outlived = {}, {}, {} end
  if context.marked[mark] then return { 'duplicate', context.marked[mark] } end -- guard: dedup_in_batch
  local known = redis.call('HGET', context.dedup, mark)
  if not known then return nil end
  local first, ends_ms = match(known, '^([^|]*)|(%d+)$')
  if first and (ends_ms == '0' or tonumber(ends_ms) > context.now_ms) then return { 'duplicate', first } end -- guard: dedup
  context.outlived[mark] = first
  return nil
end

local function judge_cap(context, target)
  context.entered = context.entered or {}
  local cap, section = target.limits.cap, target.parts.section
  local standing = tonumber(redis.call('HGET', context.counts, section) or 0) + (context.entered[section] or 0)
  if standing >= cap then return { 'full', standing, cap } end -- guard: section_cap
  return nil
end

local function judge(context, packed, id, target, priority, mark, payload)
  if context.fresh[id] then return { 'exists', target.parts.section } end -- guard: submit_exists_in_batch
  if packed then
    local existing = unpack_record(packed)
    context.fresh[id] = true
    if existing and existing.request == context.request then return 'submitted' end -- guard: submit_repeat
    return { 'exists', existing and existing.section or '' } -- guard: submit_exists
  end
  if not target.place then return { 'place', target.parts.name } end -- guard: submit_place
  if not PRIORITIES[priority] then return { 'priority', priority } end -- guard: submit_priority
  local bytes = target.limits.bytes
  if bytes > 0 and #payload > bytes then return { 'large', #payload, bytes } end -- guard: payload_bytes
  return mark ~= '' and judge_mark(context, mark) or target.limits.cap > 0 and judge_cap(context, target) or nil
end

-- stamp_for: new items of this lane go into its line, or wait for their time.
local function stamp_for(context, changes, target, waits)
  local stamp = waits and target.waiting or not waits and target.stamp
  if not stamp then
    local parts = target.parts
    stamp = stamp_of(changes, parts.newborn, '1', 'submitted', '', parts.name, context.agent, '', '', context.trace)
    stamp.into = entrants(changes, waits and target.timed or target.line, target.place ~= '-' and target.bell or nil)
    if waits then target.waiting = stamp else target.stamp = stamp end
  end
  return stamp
end

-- accept: nothing is written yet, but the items after this one are judged as if it stood on the board.
local function accept(context, row, id, target, mark, life_ms)
  context.fresh[id] = row
  if target.limits.cap > 0 then
    local section = target.parts.section
    context.entered[section] = (context.entered[section] or 0) + 1
  end
  if mark ~= '' then
    context.marked[mark] = id
    local marks = context.marks
    marks[#marks + 1] = mark
    marks[#marks + 1] = id .. '|' .. (life_ms == '0' and '0' or whole(context.now_ms + tonumber(life_ms)))
  end
end

-- put: an accepted item gets its number in the line, and its record.
local function put(context, changes, id, target, priority, delay_ms, mark, seq)
  local waits = delay_ms ~= '0' and target.place ~= '-'
  local score = waits and whole(context.now_ms + tonumber(delay_ms)) or score_of(priority, seq)
  local own = '|' .. priority .. '|' .. seq .. '|' .. context.request .. '|' .. mark
  press(changes, stamp_for(context, changes, target, waits), id, '', own, score)
end

local function submit(keys, argv)
  local targets, _, now_ms = read_targets(keys)
  local ids, answers, texts = { nil, nil, nil, nil }, { nil, nil, nil, nil }, { nil, nil, nil, nil }
  for i = 4, #argv, 7 do ids[(i + 3) / 7] = argv[i] end
  local context = {
    now_ms = now_ms, counts = keys[5], dedup = keys[7], request = argv[1], agent = argv[2], trace = argv[3],
    fresh = { [ids[1]] = false }, marked = nil, marks = nil, outlived = nil, entered = nil,
  }
  local packed = redis.call('HMGET', keys[2], unpack(ids))

  local at, n, before, target = 4, 0, nil, nil
  for row = 1, #ids do
    local index, mark = argv[at + 1], argv[at + 4]
    if index ~= before then before, target = index, targets[tonumber(index)] end
    local refused = judge(context, packed[row], ids[row], target, argv[at + 2], mark, argv[at + 6])
    answers[row] = refused or 'submitted'
    if not refused then
      accept(context, row, ids[row], target, mark, argv[at + 5])
      n = n + 1
    end
    at = at + 7
  end
  if n == 0 then return answers end

  local changes = collect_changes(keys[2], keys[4], keys[5])
  local seq = redis.call('INCRBY', keys[6], whole(n)) - n
  at, n = 4, 0
  for row = 1, #ids do
    local id, index = ids[row], argv[at + 1]
    if context.fresh[id] == row then
      if index ~= before then before, target = index, targets[tonumber(index)] end
      texts[n + 1], texts[n + 2] = id, argv[at + 6]
      n = n + 2
      seq = seq + 1
      put(context, changes, id, target, argv[at + 2], argv[at + 3], argv[at + 4], whole(seq))
    end
    at = at + 7
  end
  redis.call('HSET', keys[3], unpack(texts))
  if context.marks and context.marks[1] then redis.call('HSET', context.dedup, unpack(context.marks)) end
  for mark, id in pairs(context.outlived or {}) do
    if context.marked[mark] then forget_mark(keys[2], id, mark) end -- guard: dedup_outlived
  end
  write_changes(changes)
  return answers
end
register('submit', submit)
