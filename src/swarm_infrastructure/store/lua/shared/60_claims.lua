-- Steps that every way of claiming shares.
-- A lane of a claim is four keys: the line itself, `timed` (claims by the end of their lease, delayed items by their
-- due time), the doorbell, and the section's quarantine.
local function read_lanes(keys, first)
  local lanes = { nil, nil, nil, nil }
  for i = first, #keys, 4 do
    local line, known = keys[i], false
    for k = 1, #lanes do known = known or lanes[k].line == line end
    if not known then -- guard: lane_twice
      lanes[#lanes + 1] = {
        line = line, timed = keys[i + 1], bell = keys[i + 2], quarantine = keys[i + 3], parts = lane_at(line),
        becomes = '-', left = false, due_ms = nil,
      }
    end
  end
  return lanes
end

-- read_claimables: what claims make of these lanes' items (`becomes`): '-' where items may not be claimed from or the quarantine
-- is not the lane's own. Returns the first such lane, or nil, and the time, as `read_clock`: one question to the board.
local function read_claimables(board, lanes)
  local fields, unfit = { 'clock_offset_ms', 'quarantine', nil, nil }, nil
  for i = 1, #lanes do fields[i + 2] = lanes[i].parts.place_rule end
  local found = redis.call('HMGET', board, unpack(fields))
  for i = 1, #lanes do
    local lane, becomes = lanes[i], found[i + 2] or '-'
    local parts, quarantine = lane.parts, lane_at(lane.quarantine)
    local own = quarantine.section == parts.section and quarantine.status == found[2] and quarantine.requires == parts.requires
    if not own then becomes = '-' end -- guard: lane_quarantine
    if becomes == '-' then unfit = unfit or lane end
    lane.becomes = becomes
  end
  return unfit, clock_at(found[1])
end

-- worn_out: does one more crash or failure send the item to quarantine?
local function worn_out(limits, record)
  if limits.crashes > 0 and tonumber(record.crashes) >= limits.crashes then return 'crashes' end -- guard: max_crashes
  if limits.attempts > 0 and tonumber(record.attempts) >= limits.attempts then return 'attempts' end -- guard: max_attempts
  return nil
end

local function end_lease(changes, context, lane, id, record, ended_ms)
  local agent, token, from = record.holder, record.token, lane_of(record)
  record.crashes = plus(record.crashes, 1)
  record.version = plus(record.version, 1)
  local why = worn_out(rule.limits(context.rules, record.section), record)
  local kind, line, bell = 'lease_ended', lane.line, lane.bell
  if why then kind, line, bell = 'quarantined', lane.quarantine, nil end
  record.status = why and lane_at(lane.quarantine).status or record.origin
  record.holder, record.origin = '', ''
  take_out(changes, lane.timed, id)
  put_in(changes, line, score_of(record.priority, record.seq), id, bell)
  count(changes, context.held, agent, -1)
  change(changes, id, record, kind, from, lane_of(record), agent, token, why and 'lease ended (' .. why .. ')' or 'lease ended', '')
  context.lapsed[#context.lapsed + 1] = { id = id, agent = agent, token = token, late_ms = context.now_ms - ended_ms, why = why }
end

-- read_due: when the first lease or delay of a lane ends, nil if there is none.
local function read_due(lane)
  local due = redis.call('ZRANGE', lane.timed, '0', '0', 'WITHSCORES')[2]
  return due and tonumber(due)
end

-- take_back: what ran out in a lane, at most `limit` items: leases (a crash each) and delays (nothing but their time).
local function take_back(changes, context, lane, limit)
  local scored = redis.call('ZRANGEBYSCORE', lane.timed, '-inf', context.now_ms, 'WITHSCORES', 'LIMIT', 0, limit)
  local due, ends_ms = {}, {}
  for i = 1, #scored, 2 do due[#due + 1], ends_ms[#ends_ms + 1] = scored[i], tonumber(scored[i + 1]) end
  local packed = redis.call('HMGET', context.items, unpack(due))
  for i, id in ipairs(due) do
    local record = unpack_record(packed[i])
    if not record or lane_of(record, record.holder ~= '' and record.origin or nil) ~= lane.parts.name then -- guard: reap_forged
      take_out(changes, lane.timed, id) -- torn or forged: `swarm audit` names it
    elseif record.holder ~= '' then
      end_lease(changes, context, lane, id, record, ends_ms[i])
    else
      take_out(changes, lane.timed, id)
      put_in(changes, lane.line, score_of(record.priority, record.seq), id, lane.bell)
    end
  end
  return #due
end

-- remember_lapse: a lease ended: the item's errors say so, and the board's failures; what wore out waits for a person. The rows
-- are those of failures.py. Names need no escaping: a board takes none that would.
local MOST_FAILURES = 1000

local function remember_lapse(context, row)
  local now_text, error = whole(context.now_ms), 'the lease ran out: the agent crashed, froze or was cut off'
  remember_error(context.errors, row.id, string.format(
    '{"at_ms":%s,"late_ms":%s,"kind":"lease_ended","agent":"%s","token":"%s","error":"%s"}',
    now_text, whole(row.late_ms), row.agent, row.token, error))
  redis.call('XADD', context.failures, 'MAXLEN', '~', MOST_FAILURES, '*', 'row', string.format(
    '{"id":"lease-%s-%s","type":"agent_crash","agent_id":"%s","task_id":"%s","error":"%s"}',
    row.token, row.id, row.agent, row.id, error))
  if row.why then
    local before = redis.call('HGET', context.escalations, row.id)
    redis.call('HSET', context.escalations, row.id, string.format(
      '{"task_id":"%s","why":"quarantined (%s): %s","at_ms":%s,"agent_id":"%s","type":"agent_crash","facts":{}}',
      row.id, row.why, error, before and match(before, '"at_ms":(%d+)') or now_text, row.agent))
  end
end

-- reap: take back what ran out in these lanes, at most `limit` items. Writes, and most often has no reason to.
-- Returns how many leases ended, and when the next lease or delay ends, nil if there is none.
local function reap(context, lanes, limit)
  local changes, next_ms
  for i = 1, #lanes do
    local lane = lanes[i]
    lane.due_ms = read_due(lane)
    if lane.due_ms and lane.due_ms <= context.now_ms and limit > 0 then
      changes = changes or collect_changes(context.items, context.events, context.counts)
      context.lapsed = context.lapsed or {}
      limit = limit - take_back(changes, context, lane, limit)
    end
  end
  if changes then write_changes(changes) end
  for _, row in ipairs(context.lapsed or {}) do remember_lapse(context, row) end
  for i = 1, #lanes do
    local due_ms = lanes[i].due_ms
    if due_ms and due_ms <= context.now_ms then due_ms = read_due(lanes[i]) end -- what was due is gone
    if due_ms and (not next_ms or due_ms < next_ms) then next_ms = due_ms end
  end
  return context.lapsed and #context.lapsed or 0, next_ms
end

-- next_token: greater than every token before it, even after a failover that forgot some: the clock has moved on.
local function next_token(fence, now_us)
  local token = whole(now_us)
  local last = tonumber(redis.call('SET', fence, token, 'GET') or 0)
  if last < now_us then return token end
  token = whole(last + 1) -- the clock was put back, or this is the same microsecond
  redis.call('SET', fence, token)
  return token
end

-- held_stamp: items of this lane and state become an agent's claims. `read_claimables` has looked at the lane.
local function held_stamp(changes, context, lane, state, agent, token)
  local parts, becomes = lane.parts, lane.becomes
  local version, attempts = plus(state.version, 1), plus(state.attempts, 1)
  local text = pack_state(state.section, becomes, state.requires, version, attempts, state.crashes, token, agent, parts.status,
    state.endings)
  local claimed = parts.section .. '/' .. becomes .. '/' .. parts.requires
  local stamp = stamp_of(changes, text, version, 'claimed', parts.name, claimed, agent, token, '', '')
  stamp.into = entrants(changes, lane.timed)
  stamp[1], stamp[2], stamp[3] = context.held, agent, 1
  return stamp
end

-- gates_of: for each agent why it may not claim now, or false. Fields of the gates hash: '*', 'role:ROLE', 'agent:ID'.
-- A gate that a budget shut stands until its window ends: `budget|…|resumes_ms|…`, see 70_money.
local function gates_of(gates, agents, now_ms)
  local fields, shut = { '*', nil, nil, nil }, { nil, nil, nil, nil }
  for i = 1, #agents do
    fields[2 * i] = 'agent:' .. agents[i].id
    fields[2 * i + 1] = 'role:' .. agents[i].role
  end
  local found = redis.call('HMGET', gates, unpack(fields))
  for i = 1, #found do
    local gate = found[i]
    local resumes_ms = gate and tonumber(match(gate, '^budget|[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|(%d+)|') or 0) or 0
    if resumes_ms > 0 and resumes_ms <= now_ms then found[i] = false end -- guard: gate_window
  end
  for i = 1, #agents do shut[i] = found[2 * i] or found[2 * i + 1] or found[1] end
  return shut
end

-- claim_lost: why a claim does not hold any more, or nil: for calls that need one and do not end it.
local function claim_lost(record, token, ends_ms, gates, now_ms)
  if not record then return 'the item was deleted' end
  if record.token ~= token or record.holder == '' then return 'the item was taken back' end -- guard: held_token
  if tonumber(ends_ms or 0) <= now_ms then return 'the lease ran out' end -- guard: held_lease
  if redis.call('HGET', gates, 'agent:' .. record.holder) == 'revoked' then return 'the agent was revoked' end -- guard: held_revoked
  return nil
end
