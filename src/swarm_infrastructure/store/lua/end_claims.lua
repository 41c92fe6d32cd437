-- end_claims: complete, fail or hand back claims; many of one process in one call. Works when Redis is out of memory.
-- KEYS     1 board  2 items  3 payloads  4 events  5 counts  6 gates  7 held  8 results  9 errors  10 tallies
--          then per lane: line, timed, bell
-- ARGV     groups of claims that end alike: kind, lane claimed from, lane to, lane of the quarantine (1 = first),
--          delay_ms, reason, trace, error (JSON line or ''), number of claims;
--          then per claim: id, token, version the payload was made from or '', payload or '', result or ''
--          kind: complete | fail (to: where it waits) | give_up | hand_back | revoke (by an operator)
-- Returns  one answer per claim: {'completed'|'failed'|'quarantined'|'handed_back'|'revoked', version}, the same when repeated;
--          {'lost', why}   {'step', from, to}   {'place', lane}   {'version', found}   {'large', bytes, limit}   {'missing'}
--          {'kind', kind}
-- Event    completed, failed, quarantined, handed_back or revoked
local ENDED = { complete = 'completed', fail = 'failed', give_up = 'quarantined', hand_back = 'handed_back', revoke = 'revoked' }

-- first_answer: what this call got before, if its reply was lost; or why the claim no longer holds.
local function first_answer(state, token, kind)
  for ended, ending, version in string.gmatch(state.endings, '(%d+):([%a_]+):(%d+)') do
    if ended == token then
      if ending == ENDED[kind] or (kind == 'fail' and ending == 'quarantined') then return { ending, version } end
      return { 'lost', 'it has ended: ' .. ending }
    end
  end
  if state.holder ~= '' then return { 'lost', 'the lease ran out and ' .. state.holder .. ' holds it now' } end
  return { 'lost', 'the lease ran out and the item was taken back' }
end

-- lane_of_call: a lane that this call names by its number, read once.
local function lane_of_call(context, index)
  local n = tonumber(index)
  local lane = context.lanes[n]
  if not lane then
    local keys, first = context.keys, 11 + (n - 1) * 3
    lane = { line = keys[first], timed = keys[first + 1], bell = keys[first + 2], parts = lane_at(keys[first]), ready = false }
    context.lanes[n] = lane
  end
  return lane
end

-- judge_target: may items in this state go to that lane? `needed`: the only lane it may be, where the board and not the agent
-- decides.
local function judge_target(context, state, lane, kind, needed)
  local to = lane.parts
  local place = read_rule(context.rules, to.place_rule)
  if not place then return { 'place', to.name } end -- guard: end_place
  if kind == 'complete' and not rule.step(context.rules, state.status, to.status) then -- guard: end_step
    return { 'step', state.status, to.status }
  end
  if needed and to.name ~= needed then return { 'place', to.name } end -- guard: end_needed
  lane.ready = place ~= '-'
  return nil
end

-- landing: items in this state leave the agent's hands and go to their next lane.
local function landing(context, group, state, kind, lane, delay_ms)
  local changes, agent, token, to = context.changes, state.holder, state.token, lane.parts
  local version, attempts, crashes = plus(state.version, 1), state.attempts, state.crashes
  if kind == 'completed' then
    attempts, crashes = '0', '0'
  elseif kind == 'handed_back' or kind == 'revoked' then
    attempts = whole(math.max(0, tonumber(attempts) - 1)) -- neither a failure nor a crash
  end
  local endings = token .. ':' .. kind .. ':' .. version
  if state.endings ~= '' then endings = endings .. ',' .. match(state.endings, '^[^,]*') end
  local text = pack_state(to.section, to.status, to.requires, version, attempts, crashes, token, '', '', endings)
  local stamp = stamp_of(changes, text, version, kind, state.lane, to.name, agent, token, group.reason, group.trace)
  stamp[1], stamp[2], stamp[3] = context.held, agent, -1
  stamp[4], stamp[5], stamp[6] = context.tallies, agent .. '|' .. kind, 1
  stamp.out = leavers(changes, group.from.timed)
  local due_ms
  if lane.ready and delay_ms > 0 then
    stamp.into, due_ms = entrants(changes, lane.timed, lane.bell), whole(context.now_ms + delay_ms)
  else
    stamp.into = entrants(changes, lane.line, lane.ready and lane.bell or nil)
  end
  return { stamp = stamp, answer = { kind, version }, due_ms = due_ms, refused = nil }
end

-- fate_of: what becomes of all claims of a group whose items are in one state: where they land, or why they may not.
local function fate_of(context, group, state)
  local kind, rules = group.kind, context.rules
  if kind ~= 'revoke' and redis.call('HGET', context.gates, 'agent:' .. state.holder) == 'revoked' then -- guard: end_revoked
    return { refused = { 'lost', 'the agent was revoked' } }
  end
  if kind == 'complete' then
    local refused = judge_target(context, state, group.to, kind)
    return refused and { refused = refused } or landing(context, group, state, 'completed', group.to, group.delay_ms)
  end
  if kind == 'fail' or kind == 'give_up' then
    local retry = rule.retry(rules, state.section)
    local waits = lane_of(state, retry ~= '' and retry or group.from.parts.status)
    local quarantine = lane_of_call(context, group.quarantine)
    local refused = judge_target(context, state, group.to, kind, waits)
      or judge_target(context, state, quarantine, kind, lane_of(state, rule.quarantine(rules)))
    if refused then return { refused = refused } end
    if kind == 'give_up' or worn_out(rule.limits(rules, state.section), state) then -- guard: fail_worn_out
      return landing(context, group, state, 'quarantined', quarantine, 0)
    end
    return landing(context, group, state, 'failed', group.to, group.delay_ms)
  end
  local refused = judge_target(context, state, group.from, kind)
  return refused and { refused = refused } or landing(context, group, state, ENDED[kind], group.from, group.delay_ms)
end

local function judge_payload(context, group, state, version, payload)
  if version ~= state.version then return { 'version', state.version } end -- guard: end_version
  local bytes = rule.limits(context.rules, group.to.parts.section).bytes
  if bytes > 0 and #payload > bytes then return { 'large', #payload, bytes } end -- guard: end_bytes
  return nil
end

local function judge_claim(context, group, state, token, ends_ms)
  if not state then return { 'missing' } end
  if state.token ~= token or state.holder == '' then return first_answer(state, token, group.kind) end -- guard: end_token
  if state.claimed_from ~= group.from.parts.name then return { 'lost', 'it was claimed from ' .. state.claimed_from } end -- guard: end_lane
  if ends_ms and tonumber(ends_ms) <= context.now_ms then return { 'lost', 'the lease ran out' } end -- guard: end_lease
  return nil
end

-- read_ends: when the leases of these claims end; nothing if none in their lane has ended, which is cheap to know and so most
-- often: Redis takes longer to print a score than to end a claim. A claim that its item's record names stands in `timed`, as
-- whatever takes it out of there rewrites the record in the same call.
local function read_ends(context, group)
  if group.kind == 'revoke' or redis.call('ZCOUNT', group.from.timed, '-inf', whole(context.now_ms)) == 0 then return nil end
  return redis.call('ZMSCORE', group.from.timed, unpack(group.ids))
end

local function read_group(context, argv, at)
  local kind, from, to, quarantine, delay_ms, reason, trace, error, n = unpack(argv, at, at + 8)
  local group = {
    kind = kind, from = lane_of_call(context, from), to = lane_of_call(context, to),
    quarantine = quarantine, delay_ms = tonumber(delay_ms),
    reason = reason, trace = trace, error = error, ids = { nil, nil, nil, nil }, first = at + 9,
  }
  local ids, many = group.ids, tonumber(n)
  for i = 1, many do ids[i] = argv[at + 4 + 5 * i] end
  return group, at + 9 + 5 * many
end

-- remember: what is to be written beside the records once all are judged: name, value, name, value, …
local function remember(context, kind, name, value)
  local kept = context[kind]
  if kept then
    kept[#kept + 1] = name
    kept[#kept + 1] = value
  else
    context[kind] = { name, value }
  end
end

-- end_group: judge the claims of a group, and collect what becomes of them.
local function end_group(context, keys, argv, group, answers)
  local ids = group.ids
  if not ENDED[group.kind] then -- guard: end_kind
    for _ = 1, #ids do answers[#answers + 1] = { 'kind', group.kind } end
    return
  end
  local changes, ended = context.changes, context.ended or { [ids[1]] = false }
  context.ended = ended
  local records, ends = redis.call('HMGET', keys[2], unpack(ids)), read_ends(context, group)
  local completes, n, at = group.kind == 'complete', #answers, group.first
  local before, state, judged, fate, fates
  for i = 1, #ids do
    local id = ids[i]
    local token, version, payload, result = argv[at + 1], argv[at + 2], argv[at + 3], argv[at + 4]
    local event, own, priority, seq, text = split_record(records[i])
    text = ended[id] or text -- guard: end_twice
    if text ~= before then before, state = text, text and state_of(context, text) end
    local answer = judge_claim(context, group, state, token, ends and ends[i])
    if not answer then
      if state ~= judged then
        judged, fate = state, fates and fates[state]
        if not fate then
          fate = fate_of(context, group, state)
          if ids[2] then
            fates = fates or {}
            fates[state] = fate
          end
        end
      end
      answer = fate.refused or completes and payload ~= '' and judge_payload(context, group, state, version, payload)
      if not answer then
        answer = fate.answer
        local stamp = fate.stamp
        press(changes, stamp, id, event, own, fate.due_ms or score_of(priority, seq))
        ended[id] = stamp.text -- who ends it once more gets the first answer
        if completes then
          if payload ~= '' then remember(context, 'texts', id, payload) end
          if result ~= '' then remember(context, 'results', id, result) end
        end
        if group.error ~= '' then remember(context, 'troubles', id, group.error) end
      end
    end
    answers[n + i] = answer
    at = at + 5
  end
end

local function end_claims(keys, argv)
  if not argv[1] then return {} end
  -- where the first claims go to: what the board says of it is asked with the clock
  local to = lane_at(keys[11 + (tonumber(argv[3]) - 1) * 3])
  local found = redis.call('HMGET', keys[1], 'clock_offset_ms', to.place_rule)
  local rules = { board = keys[1], [to.place_rule] = found[2] }
  local _, now_ms = clock_at(found[1])
  local context = {
    keys = keys, now_ms = now_ms, rules = rules, gates = keys[6], held = keys[7], tallies = keys[10],
    changes = collect_changes(keys[2], keys[4], keys[5]), lanes = { nil, nil, nil, nil }, states = nil, ended = nil,
    texts = nil, results = nil, troubles = nil,
  }
  local answers, at = { nil, nil, nil, nil }, 1
  while argv[at] do
    local group
    group, at = read_group(context, argv, at)
    end_group(context, keys, argv, group, answers)
  end
  write_changes(context.changes)
  if context.texts then redis.call('HSET', keys[3], unpack(context.texts)) end
  if context.results then redis.call('HSET', keys[8], unpack(context.results)) end
  local troubles = context.troubles or {}
  for i = 1, #troubles, 2 do remember_error(keys[9], troubles[i], troubles[i + 1]) end
  return answers
end
register('end_claims', end_claims, { 'allow-oom' })
