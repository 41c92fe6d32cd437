-- claim_item: give an agent the sole right to work on one item that it names.
-- KEYS     1 board  2 items  3 payloads  4 events  5 counts  6 fence  7 gates  8 held  9 receipts  10 errors
--          11 failures  12 escalations, then per lane the item may be in: line, timed, bell, quarantine
-- ARGV     1 item  2 agent  3 role  4 lease_ms (> 0)  5 request  6 '1': also if it waits for its time
-- Returns  {'claimed', token, lease_ends_ms, record, payload}   {'held', holder}   {'lane', lane}: not ready
--          {'delayed', due_ms}   {'gate', reason}   {'missing'}
-- Event    claimed
local function claim_item(keys, argv)
  local context = {
    items = keys[2], payloads = keys[3], events = keys[4], counts = keys[5], gates = keys[7], held = keys[8],
    receipts = keys[9], errors = keys[10], failures = keys[11], escalations = keys[12], rules = { board = keys[1] },
  }
  local id, agent, role, lease_ms, request = argv[1], argv[2], argv[3], tonumber(argv[4]), argv[5]
  local lanes = read_lanes(keys, 13)
  local _, now_us, now_ms = read_claimables(keys[1], lanes)
  context.now_ms = now_ms
  local gate = gates_of(context.gates, { { id = agent, role = role } }, now_ms)[1]
  if gate then return { 'gate', gate } end -- guard: item_gate
  local ask, given = string.match(redis.call('HGET', context.receipts, agent) or '', '^(%S+) (%S+)')

  local record = unpack_record(redis.call('HGET', context.items, id))
  if not record then return { 'missing' } end
  local ends_ms = whole(now_ms + lease_ms)
  local lane
  for _, each in ipairs(lanes) do
    if each.parts.name == lane_of(record, record.holder ~= '' and record.origin or nil) then lane = each end
  end
  if not lane or lane.becomes == '-' then return { 'lane', lane_of(record) } end -- guard: item_lane
  local due_ms = tonumber(redis.call('ZSCORE', lane.timed, id) or 0)
  if record.holder ~= '' then
    if ask == request and given == record.token and due_ms > now_ms then -- guard: item_repeat
      return { 'claimed', given, whole(due_ms), pack_record(record), redis.call('HGET', context.payloads, id) }
    end
    if due_ms > now_ms then return { 'held', record.holder } end -- guard: item_held
    reap(context, { lane }, 500) -- its lease ran out: a crash, and perhaps the last one it may have
    record = unpack_record(redis.call('HGET', context.items, id))
    if record.holder ~= '' or lane_of(record) ~= lane.parts.name then return { 'lane', lane_of(record) } end -- guard: item_worn_out
  elseif due_ms > now_ms and argv[6] ~= '1' then
    return { 'delayed', whole(due_ms) } -- guard: item_delayed
  end

  local changes = collect_changes(context.items, context.events, context.counts)
  local token = next_token(keys[6], now_us)
  redis.call('ZREM', lane.line, id)
  press(changes, held_stamp(changes, context, lane, record, agent, token), id, record.event, pack_own(record), ends_ms)
  write_changes(changes)
  redis.call('HSET', context.receipts, agent, request .. ' ' .. token .. ' 1:' .. id)
  return { 'claimed', token, ends_ms, changes.stored[2], redis.call('HGET', context.payloads, id) }
end
register('claim_item', claim_item)
