-- submit: put new items on the board; each is accepted once, whoever submits it and however often.
-- KEYS     1 board  2 items  3 payloads  4 events  5 counts  6 seq  7 dedup   then per lane: line, timed, bell
-- ARGV     1 request  2 agent  3 trace  then per item: id, lane (1 = first), priority (0-9), delay_ms, dedup key or '',
--          dedup lifetime in ms ('0': for ever), payload (JSON)
-- Returns  one answer per item: 'submitted'   {'exists', section}   {'duplicate', id of the first}
--          {'full', count, cap}   {'place', lane}   {'large', bytes, limit}   {'priority', p}
-- Event    submitted   '' → lane
local PRIORITIES = {}
for n = 0, 9 do PRIORITIES[n .. ''] = true end

local function read_target(rules, keys, index)
  local first = 8 + (tonumber(index) - 1) * 3
  local lane = lane_name(keys[first])
  local section, status, requires = split_lane(lane)
  local place = section and rules.place(section, status)
  return {
    line = keys[first], timed = keys[first + 1], bell = keys[first + 2], name = lane, place = place, ready = place ~= '-',
    section = section, limits = place and rules.limits(section), stamps = {},
    state = section and pack_state(section, status, requires, '1', '0', '0', '', '', '', ''),
  }
end

local function judge_mark(context, mark)
  if context.marked[mark] then return { 'duplicate', context.marked[mark] } end -- guard: dedup_in_batch
  local known = redis.call('HGET', context.dedup, mark)
  if not known then return nil end
  local first, ends_ms = string.match(known, '^([^|]*)|(%d+)$')
  if first and (ends_ms == '0' or tonumber(ends_ms) > context.now_ms) then return { 'duplicate', first } end -- guard: dedup
  context.outlived[mark] = first
  return nil
end

local function judge_cap(context, target)
  local cap, section = target.limits.cap, target.section
  local standing = tonumber(redis.call('HGET', context.counts, section) or 0) + (context.entered[section] or 0)
  if standing >= cap then return { 'full', standing, cap } end -- guard: section_cap
  return nil
end

local function judge(context, packed, id, target, priority, mark, payload)
  if context.fresh[id] then return { 'exists', target.section } end -- guard: submit_exists_in_batch
  if packed then
    local existing = unpack_record(packed)
    context.fresh[id] = true
    if existing and existing.request == context.request then return 'submitted' end -- guard: submit_repeat
    return { 'exists', existing and existing.section or '' } -- guard: submit_exists
  end
  if not target.place then return { 'place', target.name } end -- guard: submit_place
  if not PRIORITIES[priority] then return { 'priority', priority } end -- guard: submit_priority
  local bytes = target.limits.bytes
  if bytes > 0 and #payload > bytes then return { 'large', #payload, bytes } end -- guard: payload_bytes
  return mark ~= '' and judge_mark(context, mark) or target.limits.cap > 0 and judge_cap(context, target) or nil
end

-- read_stamp: new items of this lane go into its line, or wait for their time.
local function read_stamp(context, changes, target, waits)
  local stamp = target.stamps[waits]
  if not stamp then
    stamp = stamp_of(changes, target.state, '1', 'submitted', '', target.name, context.agent, '', '', context.trace)
    stamp.into = entrants(changes, waits and target.timed or target.line, target.ready and target.bell or nil)
    target.stamps[waits] = stamp
  end
  return stamp
end

local function accept(context, changes, id, target, priority, delay_ms, mark, life_ms, seq)
  context.fresh[id] = true
  if target.limits.cap > 0 then context.entered[target.section] = (context.entered[target.section] or 0) + 1 end
  if mark ~= '' then
    context.marked[mark] = id
    local marks = context.marks
    marks[#marks + 1] = mark
    marks[#marks + 1] = id .. '|' .. (life_ms == '0' and '0' or whole(context.now_ms + tonumber(life_ms)))
  end
  local waits = delay_ms ~= '0' and target.ready
  local score = waits and whole(context.now_ms + tonumber(delay_ms)) or score_of(priority, seq)
  local own = '|' .. priority .. '|' .. seq .. '|' .. context.request .. '|' .. mark
  press(changes, read_stamp(context, changes, target, waits), id, '', own, score)
end

local function submit(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local rules = read_rules(keys[1])
  local context = {
    now_ms = now_ms, counts = keys[5], dedup = keys[7], request = argv[1], agent = argv[2], trace = argv[3],
    fresh = {}, marked = {}, marks = {}, outlived = {}, entered = {},
  }
  local changes = collect_changes(keys[2], keys[4], keys[5])
  local answers, texts, ids, targets = {}, {}, {}, {}
  for i = 4, #argv, 7 do ids[(i + 3) / 7] = argv[i] end
  local packed = redis.call('HMGET', keys[2], unpack(ids))
  local seq = tonumber(redis.call('GET', keys[6]) or 0)

  local at, n = 4, 0
  for row = 1, #ids do
    local id = ids[row]
    local index, priority, delay_ms, mark, life_ms = argv[at + 1], argv[at + 2], argv[at + 3], argv[at + 4], argv[at + 5]
    local payload = argv[at + 6]
    local target = targets[index] or read_target(rules, keys, index)
    targets[index] = target
    local refused = judge(context, packed[row], id, target, priority, mark, payload)
    answers[row] = refused or 'submitted'
    if not refused then
      seq = seq + 1
      accept(context, changes, id, target, priority, delay_ms, mark, life_ms, whole(seq))
      texts[n + 1], texts[n + 2] = id, payload
      n = n + 2
    end
    at = at + 7
  end
  if n == 0 then return answers end
  redis.call('SET', keys[6], whole(seq))
  redis.call('HSET', keys[3], unpack(texts))
  if #context.marks > 0 then redis.call('HSET', context.dedup, unpack(context.marks)) end
  for mark, id in pairs(context.outlived) do
    if context.marked[mark] then forget_mark(keys[2], id, mark) end -- guard: dedup_outlived
  end
  write_changes(changes)
  return answers
end
register('submit', submit)
