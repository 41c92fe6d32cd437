-- Steps that every way of claiming shares.
-- A lane of a claim is four keys: the line itself, `timed` (claims by the end of their lease, delayed items by their
-- due time), the doorbell, and the section's quarantine.
local function read_lanes(keys, first)
  local lanes, known = {}, {}
  for i = first, #keys, 4 do
    local line = keys[i]
    if not known[line] then -- guard: lane_twice
      known[line] = true
      lanes[#lanes + 1] = {
        line = line, timed = keys[i + 1], bell = keys[i + 2], quarantine = keys[i + 3], name = lane_name(line),
      }
    end
  end
  return lanes
end

-- claimable: may items be claimed from this lane, and does its quarantine belong to it? Remembers what a claim makes of them.
local function claimable(rules, lane)
  local section, status, requires = split_lane(lane.name)
  lane.status, lane.becomes = status, section and rules.place(section, status) or '-'
  if lane.becomes == '-' then return false end
  local quarantine = section .. '/' .. rules.quarantine() .. '/' .. requires
  if lane_name(lane.quarantine) ~= quarantine then return false end -- guard: lane_quarantine
  lane.claimed_name = section .. '/' .. lane.becomes .. '/' .. requires
  return true
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
  local why = worn_out(context.rules.limits(record.section), record)
  local kind, line, bell = 'lease_ended', lane.line, lane.bell
  if why then kind, line, bell = 'quarantined', lane.quarantine, nil end
  record.status = why and select(2, split_lane(lane_name(lane.quarantine))) or record.origin
  record.holder, record.origin = '', ''
  take_out(changes, lane.timed, id)
  put_in(changes, line, score_of(record.priority, record.seq), id, bell)
  count(changes, context.held, agent, -1)
  change(changes, id, record, kind, from, lane_of(record), agent, token, why and 'lease ended (' .. why .. ')' or 'lease ended', '')
  context.lapsed[#context.lapsed + 1] = { id = id, agent = agent, token = token, late_ms = context.now_ms - ended_ms }
end

-- reap: take back what ran out, at most `limit` items: leases (a crash each) and delays (nothing but their time).
-- Writes. Returns how many leases ended.
local function reap(context, lanes, limit)
  local changes
  context.lapsed = {}
  for _, lane in ipairs(lanes) do
    local scored, due, ends_ms = redis.call('ZRANGEBYSCORE', lane.timed, '-inf', context.now_ms, 'WITHSCORES', 'LIMIT', 0, limit), {}, {}
    for i = 1, #scored, 2 do due[#due + 1], ends_ms[#ends_ms + 1] = scored[i], tonumber(scored[i + 1]) end
    if #due > 0 then
      changes = changes or collect_changes(context.items, context.events, context.counts)
      local packed = redis.call('HMGET', context.items, unpack(due))
      for i, id in ipairs(due) do
        local record = unpack_record(packed[i])
        if not record or lane_of(record, record.holder ~= '' and record.origin or nil) ~= lane.name then -- guard: reap_forged
          take_out(changes, lane.timed, id) -- torn or forged: `swarm audit` names it
        elseif record.holder ~= '' then
          end_lease(changes, context, lane, id, record, ends_ms[i])
        else
          take_out(changes, lane.timed, id)
          put_in(changes, lane.line, score_of(record.priority, record.seq), id, lane.bell)
        end
      end
      limit = limit - #due
      if limit <= 0 then break end
    end
  end
  if changes then write_changes(changes) end
  for _, row in ipairs(context.lapsed) do
    remember_error(context.errors, row.id, string.format(
      '{"at_ms":%.0f,"late_ms":%.0f,"kind":"lease_ended","agent":"%s","token":"%s","error":"the lease ran out: the agent crashed, froze or was cut off"}',
      context.now_ms, row.late_ms, row.agent, row.token))
  end
  return #context.lapsed
end

-- next_token: greater than every token before it, even after a failover that forgot some: the clock has moved on.
local function next_token(fence, now_us)
  local token = math.max(tonumber(redis.call('GET', fence) or 0) + 1, now_us)
  redis.call('SET', fence, whole(token))
  return whole(token)
end

-- held_stamp: items of this lane and state become an agent's claims. `claimable(lane)` was asked before.
local function held_stamp(changes, context, lane, state, agent, token)
  local version, attempts = plus(state.version, 1), plus(state.attempts, 1)
  local text = pack_state(state.section, lane.becomes, state.requires, version, attempts, state.crashes, token, agent,
    lane.status, state.endings)
  local stamp = stamp_of(changes, text, version, 'claimed', lane.name, lane.claimed_name, agent, token, '', '')
  stamp.into = entrants(changes, lane.timed)
  stamp.counted = { context.held, agent, 1 }
  return stamp
end

-- gates_of: for each agent why it may not claim now, or false. Fields of the gates hash: '*', 'role:ROLE', 'agent:ID'.
-- A gate that a budget shut stands until its window ends: `budget|…|resumes_ms|…`, see 70_money.
local function gates_of(gates, agents, now_ms)
  local fields, shut = { '*' }, {}
  for _, agent in ipairs(agents) do
    fields[#fields + 1] = 'agent:' .. agent.id
    fields[#fields + 1] = 'role:' .. agent.role
  end
  local found = redis.call('HMGET', gates, unpack(fields))
  for i, gate in ipairs(found) do
    local resumes_ms = gate and tonumber(string.match(gate, '^budget|[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|(%d+)|') or 0) or 0
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
