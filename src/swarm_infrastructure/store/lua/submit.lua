-- submit: put new items on the board; each is accepted once, whoever submits it and however often.
-- KEYS     1 board  2 items  3 payloads  4 events  5 counts  6 seq  7 dedup   then per lane: line, timed, bell
-- ARGV     1 request  2 agent  3 trace  then per item: id, lane (1 = first), priority (0-9), delay_ms, dedup key or '',
--          dedup lifetime in ms ('0': for ever), payload (JSON)
-- Returns  one answer per item: 'submitted'   {'exists', section}   {'duplicate', id of the first}
--          {'full', count, cap}   {'place', lane}   {'large', bytes, limit}
-- Event    submitted   '' → lane
local function submit(keys, argv)
  local board, items, payloads, dedup = keys[1], keys[2], keys[3], keys[7]
  local request, agent, trace = argv[1], argv[2], argv[3]
  local _, now_ms = read_clock(board)
  local rules = read_rules(board)
  local changes = collect_changes(items, keys[4], keys[5])
  local answers, texts, marks, ids, entered = {}, {}, {}, {}, {}

  for i = 4, #argv, 7 do ids[#ids + 1] = argv[i] end
  local packed = redis.call('HMGET', items, unpack(ids))
  local fresh, marked = {}, {}

  local function judge(row, id, lane, mark, payload)
    local existing = unpack_record(packed[row])
    if existing and existing.request == request then return 'submitted' end -- the first answer, asked for again
    if packed[row] then return { 'exists', existing and existing.section or '' } end -- guard: submit_exists
    if fresh[id] then return { 'exists', fresh[id] } end -- guard: submit_exists_in_batch
    local section, status = split_lane(lane)
    if not section or not rules.place(section, status) then return { 'place', lane } end -- guard: submit_place
    local limits = rules.limits(section)
    if limits.bytes > 0 and #payload > limits.bytes then return { 'large', #payload, limits.bytes } end -- guard: payload_bytes
    if mark ~= '' then
      if marked[mark] then return { 'duplicate', marked[mark] } end -- guard: dedup_in_batch
      local first, ends_ms = string.match(redis.call('HGET', dedup, mark) or '', '^([^|]*)|(%d+)$')
      if first and (ends_ms == '0' or tonumber(ends_ms) > now_ms) then return { 'duplicate', first } end -- guard: dedup
    end
    if limits.cap > 0 then
      local standing = tonumber(redis.call('HGET', keys[5], section) or 0) + (entered[section] or 0)
      if standing >= limits.cap then return { 'full', standing, limits.cap } end -- guard: section_cap
    end
    return nil
  end

  local accepted = {}
  for row = 1, #ids do
    local at = 4 + (row - 1) * 7
    local id, index, priority, delay_ms, mark, life_ms, payload = unpack(argv, at, at + 6)
    local line = keys[8 + (tonumber(index) - 1) * 3]
    local lane = lane_name(line)
    local answer = judge(row, id, lane, mark, payload)
    answers[row] = answer or 'submitted'
    if not answer then
      local section, status, requires = split_lane(lane)
      fresh[id] = section
      entered[section] = (entered[section] or 0) + 1
      if mark ~= '' then
        marked[mark] = id
        marks[#marks + 1] = mark
        marks[#marks + 1] = id .. '|' .. (life_ms == '0' and '0' or whole(now_ms + tonumber(life_ms)))
      end
      texts[#texts + 1] = id
      texts[#texts + 1] = payload
      accepted[#accepted + 1] = {
        id = id, line = line, timed = keys[9 + (tonumber(index) - 1) * 3], bell = keys[10 + (tonumber(index) - 1) * 3],
        lane = lane, delay_ms = tonumber(delay_ms), ready = rules.place(section, status) ~= '-',
        record = {
          section = section, status = status, requires = requires, priority = priority, version = 1, seq = '0', attempts = 0,
          crashes = 0, token = '', holder = '', origin = '', event = '', created_ms = '', request = request, endings = '',
          dedup = mark,
        },
      }
    end
  end
  if #accepted == 0 then return answers end

  local seq = redis.call('INCRBY', keys[6], #accepted) - #accepted
  for i, new in ipairs(accepted) do
    new.record.seq = whole(seq + i)
    if new.delay_ms > 0 and new.ready then
      put_in(changes, new.timed, whole(now_ms + new.delay_ms), new.id)
    else
      put_in(changes, new.line, score_of(new.record), new.id, new.ready and new.bell or nil)
    end
    change(changes, new.id, new.record, 'submitted', '', new.lane, agent, '', '', trace)
  end
  redis.call('HSET', payloads, unpack(texts))
  if #marks > 0 then redis.call('HSET', dedup, unpack(marks)) end
  write_changes(changes)
  return answers
end
register('submit', submit)
