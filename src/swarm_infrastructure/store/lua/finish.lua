-- finish: end messages that a consumer has in hand, and publish what came of them in the same step: both or neither.
-- KEYS     1 bus  2 topics  3 group  4 dead  then the topic's partitions, all of them  then per topic published to its block
-- ARGV     1 group  2 holder  3 how many topics, then per topic: name, first key of its block, partitions, channel
--          then per ending: partition, token, kind, entry, reason, error, delay_ms, attempts, leave, how many messages, then
--          per message: topic, partition, id, key, type, content type, traceparent, body
--          kind     done   acknowledge it
--                   fail   another attempt after delay_ms, and nothing of this partition before it; a dead letter if it has
--                          had as many as `attempts`
--                   bury   to the dead letters now
--                   free   give the partition up; `entry` ('-': none) is next and has had `attempts`
--          leave    '1': nothing is left in hand; give the partition up, unless this one is to be tried again first
-- Returns  one answer per ending: {'done'}   {'again', delay_ms}   {'dead', dead letter}   {'freed'}   {'lost', why}
--          {'full', topic, found, most, group}   {'topic'}: nothing was written, the message is still in hand
-- judge_seat: nil if the ending is its holder's to make; else what to answer.
local function judge_seat(context, seat, ending)
  local token, entry, kind, word = string.match(seat.ended, '^(%d+):(%S+):(%a+):(%a+)$')
  if token == ending.token and entry == ending.entry and kind == ending.kind then return { word, '' } end -- guard: finish_repeat
  if seat.token ~= ending.token then return { 'lost', 'the partition is somebody else\'s' } end -- guard: finish_token
  if seat.holder ~= context.holder then return { 'lost', 'the partition was given up' } end -- guard: finish_holder
  if seat.until_ms <= context.now_ms then return { 'lost', 'the lease ran out' } end -- guard: finish_lease
  if ending.kind == 'free' then return nil end
  if #redis.call('XPENDING', ending.stream, context.group, ending.entry, ending.entry, 1) == 0 then -- guard: finish_pending
    return { 'lost', 'the message is not in hand' }
  end
  for _, message in ipairs(ending.messages) do
    local refused = judge_message(message)
    if refused then return refused end -- guard: finish_messages
  end
  return nil
end

local function to_dead_letters(context, seat, ending, attempts)
  local row = redis.call('XRANGE', ending.stream, ending.entry, ending.entry)[1]
  local letter = bury(context.dead, ending.stream, context.group, ending.partition, ending.entry, row and row[2] or {},
    context.now_ms, attempts, ending.reason, ending.error)
  if ending.leave == '1' then leave_seat(seat, '-', 0, 0) end
  return { 'dead', letter }
end

local function end_message(context, seat, ending)
  local used = seat.head == ending.entry and seat.used or 1
  if ending.kind == 'free' then
    leave_seat(seat, ending.entry, tonumber(ending.attempts), 0)
    return { 'freed', '' }
  end
  if ending.kind == 'bury' then return to_dead_letters(context, seat, ending, used) end
  if ending.kind == 'fail' then
    local most = tonumber(ending.attempts)
    if most > 0 and used >= most then return to_dead_letters(context, seat, ending, used) end -- guard: finish_worn_out
    leave_seat(seat, ending.entry, used, context.now_ms + tonumber(ending.delay_ms))
    return { 'again', ending.delay_ms }
  end
  redis.call('XACK', ending.stream, context.group, ending.entry)
  for _, message in ipairs(ending.messages) do publish_message(message, context.now_ms, true) end
  if ending.leave == '1' then leave_seat(seat, '-', 0, 0) end
  return { 'done', '' }
end

local function finish_all(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local context = { group = argv[1], holder = argv[2], dead = keys[4], now_ms = now_ms }
  local topics, at = read_topics(keys, argv, 3)
  local answers, seats, written = {}, {}, {}
  while argv[at] do
    local partition, token, kind, entry, reason, text, delay_ms, attempts, leave, n = unpack(argv, at, at + 9)
    local ending = {
      partition = partition, stream = keys[5 + tonumber(partition)], token = token, kind = kind, entry = entry,
      reason = reason, error = text, delay_ms = delay_ms, attempts = attempts, leave = leave, messages = {},
    }
    at = at + 10
    for i = 1, tonumber(n) do
      ending.messages[i] = read_message(topics, argv, at)
      at = at + 8
    end
    local seat = seats[partition] or unpack_seat(redis.call('HGET', keys[3], partition))
    local answer = judge_seat(context, seat, ending)
    if not answer then
      answer = end_message(context, seat, ending)
      seat.ended = table.concat({ token, entry, kind, answer[1] }, ':')
      seats[partition] = seat
    end
    answers[#answers + 1] = answer
  end
  for partition, seat in pairs(seats) do
    written[#written + 1] = partition
    written[#written + 1] = pack_seat(seat)
  end
  if #written > 0 then redis.call('HSET', keys[3], unpack(written)) end
  give_hints(topics)
  return answers
end
register('finish', finish_all, { 'allow-oom' })
