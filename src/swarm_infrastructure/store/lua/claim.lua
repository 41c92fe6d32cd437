-- claim: give agents the sole right to work on ready items until a lease ends; n items are one call, so are n agents.
-- Takes back what ran out first, so that recovery needs no leader and no traffic.
-- KEYS     1 board  2 items  3 payloads  4 events  5 counts  6 fence  7 gates  8 held  9 receipts  10 errors
--          11 failures  12 escalations, then per lane: line, timed, bell, quarantine
-- ARGV     1 request  2 lease_ms (> 0)  then per agent: id, role, wanted (1-500), most claims it may hold ('0': any number)
-- Returns  {'claimed', token, lease_ends_ms, now_ms, due_ms, per agent: {id, record, payload, …} or why it may not claim}
--          due_ms: when the next lease or delay of these lanes ends, '' if none
--          {'place', lane}: the board has no such lane to claim from
-- Event    claimed   ready → claimed lane, agent, token   (and lease_ended, quarantined for what was taken back)
local REAP_LIMIT = 50
local MOST_PER_CALL = 500

-- repeated: the reply was lost and the same request came again: what it got and still holds, and until when.
-- A receipt is `request token 1:id 2:id …`; the number is the agent's place in the call, which may name one agent twice.
local function repeated(context, lanes, agents, request)
  local names, answer, again, ends_ms = { nil, nil, nil, nil }, { nil, nil, nil, nil }, nil, nil
  for i = 1, #agents do names[i] = agents[i].id end
  local ask = request .. ' '
  for i, receipt in ipairs(redis.call('HMGET', context.receipts, unpack(names))) do
    answer[i] = { nil, nil, nil, nil }
    if receipt and substring(receipt, 1, #ask) == ask then -- guard: claim_repeat
      local token, ids = match(receipt, '^(%S+) ?(.*)$', #ask + 1)
      again = token
      for place, id in string.gmatch(ids, '(%d+):(%S+)') do
        local text = redis.call('HGET', context.items, id)
        local record, lane = unpack_record(text), nil
        for k = 1, #lanes do
          if record and lanes[k].parts.name == lane_of(record, record.origin) then lane = lanes[k] end
        end
        if tonumber(place) == i and lane and record.holder == agents[i].id and record.token == token then
          local rows, ends = answer[i], redis.call('ZSCORE', lane.timed, id)
          if not ends_ms or tonumber(ends) < tonumber(ends_ms) then ends_ms = ends end
          rows[#rows + 1] = id
          rows[#rows + 1] = text
          rows[#rows + 1] = redis.call('HGET', context.payloads, id)
        end
      end
    end
  end
  return again, answer, ends_ms
end

local function leave_line(lane, many)
  redis.call('ZREMRANGEBYRANK', lane.line, '0', whole(many - 1))
end

-- merge: up to n ids from several lines, smallest score first, and the lane of each.
local function merge(lanes, n)
  local ids, from, rows, at, scores = {}, {}, {}, {}, {}
  for k, lane in ipairs(lanes) do
    rows[k], at[k] = redis.call('ZRANGE', lane.line, '0', whole(n), 'WITHSCORES'), 1
    scores[k] = tonumber(rows[k][2])
  end
  while #ids < n do
    local first
    for k = 1, #lanes do
      if scores[k] and (not first or scores[k] < scores[first]) then first = k end
    end
    if not first then break end
    ids[#ids + 1], from[#from + 1] = rows[first][at[first]], lanes[first]
    at[first] = at[first] + 2
    scores[first] = tonumber(rows[first][at[first] + 1])
  end
  for k, lane in ipairs(lanes) do
    lane.left = scores[k] ~= nil
    if at[k] > 1 then leave_line(lane, (at[k] - 1) / 2) end
  end
  return ids, from
end

-- pop: take up to n ids out of several lines, smallest score first. Returns them, and the lane of each, or the lane of all.
-- One more than wanted is looked at, so that each lane knows if work is left in it.
-- Redis takes longer to print a score than to find its item, so that scores are asked for only where lines are to be merged.
local function pop(lanes, n)
  local full = lanes
  if #lanes > 1 then
    full = {}
    for _, lane in ipairs(lanes) do
      if redis.call('EXISTS', lane.line) == 1 then full[#full + 1] = lane end
    end
  end
  if #full > 1 then return merge(full, n) end
  local lane = full[1]
  if not lane then return {}, nil end
  local ids = redis.call('ZRANGE', lane.line, '0', whole(n))
  if ids[n + 1] then lane.left, ids[n + 1] = true, nil end
  if ids[1] then leave_line(lane, #ids) end
  return ids, nil, lane
end

local function read_agents(context, argv)
  local agents, wanted, promised = { nil, nil, nil, nil }, 0, nil
  for i = 3, #argv, 4 do
    agents[#agents + 1] = {
      id = argv[i], role = argv[i + 1], n = tonumber(argv[i + 2]), most = tonumber(argv[i + 3]), gate = nil,
    }
  end
  local gates = gates_of(context.gates, agents, context.now_ms)
  for i = 1, #agents do
    local agent = agents[i]
    local id, n = agent.id, agent.n
    agent.gate = gates[i]
    if agent.gate then n = 0 end -- guard: gate
    if agent.most > 0 then
      local held = tonumber(redis.call('HGET', context.held, id) or 0)
      if held >= agent.most then agent.gate = agent.gate or 'it holds as many as it may' end -- guard: most_held_gate
      held = held + (promised and promised[id] or 0) -- guard: most_held_in_call
      n = math.max(0, math.min(n, agent.most - held)) -- guard: most_held
    end
    n = math.min(n, MOST_PER_CALL - wanted) -- guard: most_per_call
    if agents[2] then
      promised = promised or {}
      promised[id] = (promised[id] or 0) + n
    end
    agent.n = n
    wanted = wanted + n
  end
  return agents, wanted
end

-- deal: hand what was taken round, so that no agent gets two while another has none.
local function deal(agents, taken)
  local hands, next_one, many, round = {}, 1, #taken, 0
  for i = 1, #agents do hands[i] = {} end
  while next_one <= many do
    round = round + 1
    for i, agent in ipairs(agents) do
      if round <= agent.n and next_one <= many then
        hands[i][round] = taken[next_one]
        next_one = next_one + 1
      end
    end
  end
  return hands
end

-- read_taken: of the items that were taken, the numbers of those that are what their line says, and of each its newest event,
-- the own part of its record and its state, in turn.
local function read_taken(context, ids, from, only)
  local records, sound, facts = redis.call('HMGET', context.items, unpack(ids)), { nil, nil, nil, nil }, { nil, nil, nil, nil }
  local before, state
  for i = 1, #ids do
    local event, own, _, _, text = split_record(records[i])
    if event and text ~= before then before, state = text, state_of(context, text) end
    local lane = only or from[i]
    if event and state and state.holder == '' and state.lane == lane.parts.name then -- guard: claim_forged
      facts[3 * i - 2], facts[3 * i - 1], facts[3 * i] = event, own, state
      sound[#sound + 1] = i
    end -- else it is torn or forged, and left to `swarm audit`
  end
  return sound, facts
end

local function claim(keys, argv)
  local request, lanes = argv[1], read_lanes(keys, 13)
  local unfit, now_us, now_ms = read_claimables(keys[1], lanes)
  if unfit then return { 'place', unfit.parts.name } end -- guard: claim_place
  local context = {
    items = keys[2], payloads = keys[3], events = keys[4], counts = keys[5], gates = keys[7], held = keys[8],
    receipts = keys[9], errors = keys[10], failures = keys[11], escalations = keys[12], rules = { board = keys[1] }, now_ms = now_ms,
    lapsed = nil, states = nil,
  }
  local ends_ms, now_text = now_ms + tonumber(argv[2]), whole(now_ms)
  local ends_text = whole(ends_ms)
  local _, due_ms = reap(context, lanes, REAP_LIMIT)

  local agents, wanted = read_agents(context, argv)
  local token, answer, ended_ms = repeated(context, lanes, agents, request)
  if token then
    return { 'claimed', token, ended_ms or ends_text, now_text, due_ms and whole(due_ms) or '', unpack(answer) }
  end

  local ids, from, only = pop(lanes, wanted)
  local sound, facts, hands, payloads, changes = nil, nil, nil, nil, nil
  token = ''
  if ids[1] then
    sound, facts = read_taken(context, ids, from, only)
    payloads = redis.call('HMGET', context.payloads, unpack(ids))
  end
  if sound and sound[1] then
    token = next_token(keys[6], now_us)
    changes = collect_changes(context.items, context.events, context.counts)
    hands = agents[2] and deal(agents, sound)
    local receipts, places = { nil, nil, nil, nil }, nil
    for i = 1, #agents do
      local hand, agent, stamps, before, stamp = hands and hands[i] or sound, agents[i].id, nil, nil, nil
      local place, names = ' ' .. i .. ':', hand[2] and {}
      for j = 1, #hand do
        local k = hand[j]
        local state = facts[3 * k]
        if state ~= before then
          before, stamp = state, stamps and stamps[state]
          if not stamp then
            stamp = held_stamp(changes, context, only or from[k], state, agent, token)
            if names then
              stamps = stamps or {}
              stamps[state] = stamp
            end
          end
        end
        press(changes, stamp, ids[k], facts[3 * k - 2], facts[3 * k - 1], ends_text)
        if names then names[j] = ids[k] end
      end
      if hand[1] then
        local row = place .. (names and concat(names, place) or ids[hand[1]])
        local at = places and places[agent]
        if at then
          receipts[at] = receipts[at] .. row -- this call named it before
        else
          at = #receipts + 2
          receipts[at - 1], receipts[at] = agent, request .. ' ' .. token .. row
          if hands then
            places = places or {}
            places[agent] = at
          end
        end
      end
    end
    redis.call('HSET', context.receipts, unpack(receipts))
    write_changes(changes)
    if not due_ms or ends_ms < due_ms then due_ms = ends_ms end
  end

  local n = 0
  for i = 1, #agents do
    local rows, hand = answer[i], hands and hands[i] or sound
    for j = 1, hand and #hand or 0 do
      local at = 3 * j
      n = n + 1
      rows[at - 2], rows[at - 1], rows[at] = changes.stored[2 * n - 1], changes.stored[2 * n], payloads[hand[j]]
    end
    answer[i] = agents[i].gate or rows
  end
  for i = 1, #lanes do
    local lane = lanes[i]
    if lane.left then ring(lane.bell) else redis.call('DEL', lane.bell) end
  end
  return { 'claimed', token, ends_text, now_text, due_ms and whole(due_ms) or '', unpack(answer) }
end
register('claim', claim)
