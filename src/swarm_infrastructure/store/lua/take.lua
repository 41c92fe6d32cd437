-- take: give a consumer the sole right to some partitions until a lease ends, and what is to be done there: first what
-- was delivered before and not acknowledged, then what is new, in order.
-- KEYS     1 bus  2 group  3 dead  then the topic's partitions, all of them
-- ARGV     1 group  2 holder  3 request  4 lease_ms (> 0)  5 most partitions  6 most entries  7 max_attempts ('0': any number)
--          8 partition to look at first
-- Returns  {'taken', due_ms, per partition: {partition, token, until_ms, attempts that the first entry has had with this one, entries}}
--          due_ms: in how many ms a partition that is somebody's, or waits for its next attempt, may be free; '' if none is
--          {'group'}: the group was dropped
local function read_group(stream, group, after, n)
  local answer = redis.call('XREADGROUP', 'GROUP', group, CONSUMER, 'COUNT', n, 'STREAMS', stream, after)
  return answer and answer[1] and answer[1][2] or {}
end

-- take_pending: what was delivered before. Attempts are counted for the entry that was in work alone: the head of the line.
-- Where that is not the one that the seat knows, and its holder did not leave, it had come to it and died of it, or with it.
local function take_pending(context, stream, partition, seat, n, rows)
  local after, first, unknown = '0', true, seat.holder == '-' and 0 or 1
  repeat
    local found = read_group(stream, context.group, after, n - #rows)
    for _, row in ipairs(found) do
      local id, fields = row[1], row[2]
      after = id
      local used = first and (seat.head == id and seat.used or unknown) or 0
      first = false
      if not fields then -- guard: take_deleted
        redis.call('XACK', stream, context.group, id)
      elseif context.max_attempts > 0 and used >= context.max_attempts then -- guard: take_worn_out
        bury(context.dead, stream, context.group, partition, id, fields, context.now_ms, used, 'crashed',
          'its consumer ended or lost its lease, ' .. whole(used) .. ' times')
      else
        rows[#rows + 1] = row
        if #rows == 1 then seat.head, seat.used = id, used + 1 end
      end
    end
  until #found == 0 or #rows >= n
end

local function take_new(context, stream, seat, n, rows)
  repeat
    local asked = n - #rows
    local found = asked > 0 and read_group(stream, context.group, '>', asked) or {}
    for _, row in ipairs(found) do
      local fields = row[2]
      local only = fields[#fields - 1] == 'only' and fields[#fields] or context.group
      if only ~= context.group then -- guard: take_only
        redis.call('XACK', stream, context.group, row[1])
      else
        rows[#rows + 1] = row
        if #rows == 1 then seat.head, seat.used = row[1], 1 end
      end
    end
  until #found == 0 or #found < asked
end

local function take(keys, argv)
  local now_us, now_ms = read_clock(keys[1])
  local group, holder, request, lease_ms = argv[1], argv[2], argv[3], tonumber(argv[4])
  local room, entries, start = tonumber(argv[5]), tonumber(argv[6]), tonumber(argv[8])
  local context = { group = group, dead = keys[3], now_ms = now_ms, max_attempts = tonumber(argv[7]) }
  local partitions, names = #keys - 3, { 'open', 'token' }
  for p = 0, partitions - 1 do names[#names + 1] = whole(p) end
  local known = redis.call('HMGET', keys[2], unpack(names))
  if not known[1] then return { 'group' } end -- guard: take_group
  local token = whole(math.max(tonumber(known[2] or 0) + 1, now_us))
  local each = math.max(1, math.floor(entries / math.max(1, room)))
  local hands, due_ms, written = {}, nil, {}
  for i = 0, partitions - 1 do
    local p = (start + i) % partitions
    local seat, stream = unpack_seat(known[p + 3]), keys[4 + p]
    if seat.until_ms > now_ms and seat.request == request then -- guard: take_repeat
      local rows = read_group(stream, group, '0', each)
      hands[#hands + 1] = { p, seat.token, whole(seat.until_ms), seat.used, rows }
    elseif seat.until_ms > now_ms then -- guard: take_held
      due_ms = math.min(due_ms or seat.until_ms, seat.until_ms)
    elseif seat.not_before_ms > now_ms then -- guard: take_not_before
      due_ms = math.min(due_ms or seat.not_before_ms, seat.not_before_ms)
    elseif #hands < room then
      local rows = {}
      take_pending(context, stream, p, seat, each, rows)
      take_new(context, stream, seat, each, rows)
      if #rows > 0 then
        seat.holder, seat.request, seat.token, seat.until_ms = holder, request, token, now_ms + lease_ms
        written[#written + 1] = whole(p)
        written[#written + 1] = pack_seat(seat)
        hands[#hands + 1] = { p, token, whole(seat.until_ms), seat.used, rows }
      end
    end
  end
  if #written > 0 then redis.call('HSET', keys[2], 'token', token, unpack(written)) end
  return { 'taken', due_ms and whole(due_ms - now_ms) or '', unpack(hands) }
end
register('take', take, { 'allow-oom' })
