-- claim: give agents the sole right to work on ready items until a lease ends; n items are one call, so are n agents.
-- Takes back what ran out first, so that recovery needs no leader and no traffic.
-- KEYS     1 board  2 items  3 payloads  4 events  5 counts  6 fence  7 gates  8 held  9 receipts  10 errors
--          then per lane: line, timed, bell, quarantine
-- ARGV     1 request  2 lease_ms (> 0)  then per agent: id, role, wanted (1-500), most claims it may hold ('0': any number)
-- Returns  {'claimed', token, lease_ends_ms, now_ms, due_ms, per agent: {id, record, payload, …} or the gate that is shut}
--          due_ms: when the next lease or delay of these lanes ends, '' if none
--          {'place', lane}: the board has no such lane to claim from
-- Event    claimed   ready → claimed lane, agent, token   (and lease_ended, quarantined for what was taken back)
local REAP_LIMIT = 50

-- repeated: the reply was lost and the same request came again: what it got and still holds.
local function repeated(context, agents, request)
  local names, answer, again = {}, {}, nil
  for i, agent in ipairs(agents) do names[i] = agent.id end
  for i, receipt in ipairs(redis.call('HMGET', context.receipts, unpack(names))) do
    local ask, token, ids = string.match(receipt or '', '^(%S+) (%S+) ?(.*)$')
    answer[i] = {}
    if ask == request then -- guard: claim_repeat
      again = token
      for id in string.gmatch(ids, '%S+') do
        local text = redis.call('HGET', context.items, id)
        local record = unpack_record(text)
        if record and record.holder == agents[i].id and record.token == token then
          local rows = answer[i]
          rows[#rows + 1] = id
          rows[#rows + 1] = text
          rows[#rows + 1] = redis.call('HGET', context.payloads, id)
        end
      end
    end
  end
  return again, answer
end

-- pop: up to n ids from several lines, smallest score first.
local function pop(lanes, n)
  if #lanes == 1 then
    local popped, taken = redis.call('ZPOPMIN', lanes[1].line, n), {}
    for i = 1, #popped, 2 do taken[#taken + 1] = { id = popped[i], lane = lanes[1] } end
    return taken
  end
  local offered = {}
  for _, lane in ipairs(lanes) do
    local row = redis.call('ZRANGE', lane.line, 0, n - 1, 'WITHSCORES')
    for i = 1, #row, 2 do offered[#offered + 1] = { id = row[i], score = tonumber(row[i + 1]), lane = lane } end
  end
  table.sort(offered, function(a, b) return a.score < b.score or (a.score == b.score and a.id < b.id) end)
  local taken = {}
  for i = 1, math.min(n, #offered) do
    taken[i] = offered[i]
    redis.call('ZREM', offered[i].lane.line, offered[i].id)
  end
  return taken
end

local function read_agents(context, argv)
  local agents, wanted = {}, 0
  for i = 3, #argv, 4 do
    agents[#agents + 1] = { id = argv[i], role = argv[i + 1], n = tonumber(argv[i + 2]), most = tonumber(argv[i + 3]) }
  end
  local gates = gates_of(context.gates, agents)
  for i, agent in ipairs(agents) do
    agent.gate = gates[i]
    if agent.gate then agent.n = 0 end -- guard: gate
    if agent.most > 0 then
      local held = tonumber(redis.call('HGET', context.held, agent.id) or 0)
      agent.n = math.max(0, math.min(agent.n, agent.most - held)) -- guard: most_held
    end
    wanted = wanted + agent.n
  end
  return agents, wanted
end

-- deal: hand the popped items round, so that no agent gets two while another has none.
local function deal(agents, taken)
  local hands, next_one = {}, 1
  for i = 1, #agents do hands[i] = {} end
  while next_one <= #taken do
    for i, agent in ipairs(agents) do
      if #hands[i] < agent.n and next_one <= #taken then
        hands[i][#hands[i] + 1] = taken[next_one]
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
  local token, answer = repeated(context, agents, request)
  if token then return { 'claimed', token, ends_ms, whole(now_ms), next_due(lanes), unpack(answer) } end

  local taken = wanted > 0 and pop(lanes, wanted) or {}
  local ids, whole_ones = {}, {}
  for i, one in ipairs(taken) do ids[i] = one.id end
  local packed = #ids > 0 and redis.call('HMGET', context.items, unpack(ids)) or {}
  for i, one in ipairs(taken) do
    one.record = unpack_record(packed[i])
    if one.record then whole_ones[#whole_ones + 1] = one end -- a torn or forged record is left to `swarm audit`
  end

  local changes = collect_changes(context.items, context.events, context.counts)
  local hands = deal(agents, whole_ones)
  token = #whole_ones > 0 and next_token(keys[6], now_us) or ''
  local receipts = {}
  for i, agent in ipairs(agents) do
    local names = {}
    for j, one in ipairs(hands[i]) do
      hold(changes, context, one.lane, one.id, one.record, agent.id, token, ends_ms)
      names[j] = one.id
    end
    if #names > 0 then
      receipts[#receipts + 1] = agent.id
      receipts[#receipts + 1] = request .. ' ' .. token .. ' ' .. table.concat(names, ' ')
    end
  end
  if #receipts > 0 then redis.call('HSET', context.receipts, unpack(receipts)) end
  write_changes(changes)

  local payloads = #ids > 0 and redis.call('HMGET', context.payloads, unpack(ids)) or {}
  for i, one in ipairs(taken) do one.payload = payloads[i] end
  for i, agent in ipairs(agents) do
    local rows = {}
    for j, one in ipairs(hands[i]) do
      rows[3 * j - 2], rows[3 * j - 1], rows[3 * j] = one.id, one.record.text, one.payload
    end
    answer[i] = agent.gate or rows
  end
  for _, lane in ipairs(lanes) do
    if redis.call('EXISTS', lane.line) == 0 then redis.call('DEL', lane.bell) else ring(lane.bell) end
  end
  return { 'claimed', token, ends_ms, whole(now_ms), next_due(lanes), unpack(answer) }
end
register('claim', claim)
