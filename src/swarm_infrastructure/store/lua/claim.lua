-- claim: give agents the sole right to work on ready items until a lease ends; n items are one call, so are n agents.
-- Takes back what ran out first, so that recovery needs no leader and no traffic.
-- KEYS     1 board  2 items  3 payloads  4 events  5 counts  6 fence  7 gates  8 held  9 receipts  10 errors
--          then per lane: line, timed, bell, quarantine
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
  local names, answer, again, ends_ms = {}, {}, nil, nil
  for i, agent in ipairs(agents) do names[i] = agent.id end
  local lane_called = {}
  for _, lane in ipairs(lanes) do lane_called[lane.name] = lane end
  for i, receipt in ipairs(redis.call('HMGET', context.receipts, unpack(names))) do
    local ask, token, ids = string.match(receipt or '', '^(%S+) (%S+) ?(.*)$')
    answer[i] = {}
    if ask == request then -- guard: claim_repeat
      again = token
      for place, id in string.gmatch(ids, '(%d+):(%S+)') do
        local text = redis.call('HGET', context.items, id)
        local record = unpack_record(text)
        local lane = record and lane_called[lane_of(record, record.origin)]
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

-- merge: up to n ids from several lines, smallest score first, and the lane of each.
local function merge(lanes, n)
  local ids, from, rows, at, scores = {}, {}, {}, {}, {}
  for k, lane in ipairs(lanes) do
    rows[k], at[k] = redis.call('ZRANGE', lane.line, 0, n - 1, 'WITHSCORES'), 1
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
  return ids, from
end

-- pop: take up to n ids out of several lines, smallest score first. Returns them, and the lane of each.
-- Redis takes longer to print a score than to find its item, so that scores are asked for only where lines are to be merged.
local function pop(lanes, n)
  local full, ids, from, many = {}, nil, {}, {}
  for _, lane in ipairs(lanes) do
    if redis.call('EXISTS', lane.line) == 1 then full[#full + 1] = lane end
  end
  if n == 0 or #full == 0 then return {}, {} end
  if #full == 1 then
    ids = redis.call('ZRANGE', full[1].line, 0, n - 1)
    for i = 1, #ids do from[i] = full[1] end
    many[full[1]] = #ids
  else
    ids, from = merge(full, n)
    for _, lane in ipairs(from) do many[lane] = (many[lane] or 0) + 1 end
  end
  for lane, taken in pairs(many) do redis.call('ZREMRANGEBYRANK', lane.line, 0, taken - 1) end
  return ids, from
end

local function read_agents(context, argv)
  local agents, wanted, promised = {}, 0, {}
  for i = 3, #argv, 4 do
    agents[#agents + 1] = { id = argv[i], role = argv[i + 1], n = tonumber(argv[i + 2]), most = tonumber(argv[i + 3]) }
  end
  local gates = gates_of(context.gates, agents, context.now_ms)
  for i, agent in ipairs(agents) do
    agent.gate = gates[i]
    if agent.gate then agent.n = 0 end -- guard: gate
    if agent.most > 0 then
      local held = tonumber(redis.call('HGET', context.held, agent.id) or 0)
      if held >= agent.most then agent.gate = agent.gate or 'it holds as many as it may' end -- guard: most_held_gate
      held = held + (promised[agent.id] or 0) -- guard: most_held_in_call
      agent.n = math.max(0, math.min(agent.n, agent.most - held)) -- guard: most_held
    end
    agent.n = math.min(agent.n, MOST_PER_CALL - wanted) -- guard: most_per_call
    promised[agent.id] = (promised[agent.id] or 0) + agent.n
    wanted = wanted + agent.n
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

local function next_due(lanes)
  local due
  for _, lane in ipairs(lanes) do
    local first = redis.call('ZRANGE', lane.timed, 0, 0, 'WITHSCORES')
    if first[2] and (not due or tonumber(first[2]) < due) then due = tonumber(first[2]) end
  end
  return due and whole(due) or ''
end

local function claim(keys, argv)
  local context = {
    items = keys[2], payloads = keys[3], events = keys[4], counts = keys[5], gates = keys[7], held = keys[8],
    receipts = keys[9], errors = keys[10], rules = read_rules(keys[1]),
  }
  local request, lease_ms = argv[1], tonumber(argv[2])
  local lanes = read_lanes(keys, 11)
  for _, lane in ipairs(lanes) do
    if not claimable(context.rules, lane) then return { 'place', lane.name } end -- guard: claim_place
  end
  local now_us, now_ms = read_clock(keys[1])
  context.now_ms = now_ms
  local ends_ms = whole(now_ms + lease_ms)
  reap(context, lanes, REAP_LIMIT)

  local agents, wanted = read_agents(context, argv)
  local token, answer, ended_ms = repeated(context, lanes, agents, request)
  if token then return { 'claimed', token, ended_ms or ends_ms, whole(now_ms), next_due(lanes), unpack(answer) } end

  local ids, from = pop(lanes, wanted)
  local records = #ids > 0 and redis.call('HMGET', context.items, unpack(ids)) or {}
  local known, previous, owns, states, sound, many = {}, {}, {}, {}, {}, 0
  for i = 1, #ids do
    local event, own, _, _, rest = split_record(records[i])
    local state = event and state_of(known, rest)
    if state and state.holder == '' and state.lane == from[i].name then -- guard: claim_forged
      previous[i], owns[i], states[i] = event, own, state
      many = many + 1
      sound[many] = i
    end -- else it is torn or forged, and left to `swarm audit`
  end

  local changes = collect_changes(context.items, context.events, context.counts)
  token = many > 0 and next_token(keys[6], now_us) or ''
  local hands, receipts, written = deal(agents, sound), {}, {}
  for i, agent in ipairs(agents) do
    local hand, stamps, first = hands[i], {}, changes.n + 1
    for j = 1, #hand do
      local k = hand[j]
      local state = states[k]
      local stamp = stamps[state]
      if not stamp then
        stamp = held_stamp(changes, context, from[k], state, agent.id, token)
        stamps[state] = stamp
      end
      press(changes, stamp, ids[k], previous[k], owns[k], ends_ms)
    end
    if changes.n >= first then
      local place = ' ' .. i .. ':'
      receipts[agent.id] = (receipts[agent.id] or request .. ' ' .. token) .. place .. table.concat(changes.ids, place, first)
    end
  end
  for id, row in pairs(receipts) do
    written[#written + 1] = id
    written[#written + 1] = row
  end
  if #written > 0 then redis.call('HSET', context.receipts, unpack(written)) end
  write_changes(changes)

  local payloads, n = changes.n > 0 and redis.call('HMGET', context.payloads, unpack(changes.ids)) or {}, 0
  for i, agent in ipairs(agents) do
    local rows, at = {}, 0
    for _ = 1, #hands[i] do
      n = n + 1
      rows[at + 1] = changes.ids[n]
      rows[at + 2] = changes.texts[n]
      rows[at + 3] = payloads[n]
      at = at + 3
    end
    answer[i] = agent.gate or rows
  end
  for _, lane in ipairs(lanes) do
    if redis.call('EXISTS', lane.line) == 0 then redis.call('DEL', lane.bell) else ring(lane.bell) end
  end
  return { 'claimed', token, ends_ms, whole(now_ms), next_due(lanes), unpack(answer) }
end
register('claim', claim)
