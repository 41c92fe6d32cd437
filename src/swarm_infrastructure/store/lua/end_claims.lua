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
local function first_answer(record, token, kind)
  for ended, ending, version in string.gmatch(record.endings, '(%d+):([%a_]+):(%d+)') do
    if ended == token then
      if ending == ENDED[kind] or (kind == 'fail' and ending == 'quarantined') then return { ending, version } end
      return { 'lost', 'it has ended: ' .. ending }
    end
  end
  if record.holder ~= '' then return { 'lost', 'the lease ran out and ' .. record.holder .. ' holds it now' } end
  return { 'lost', 'the lease ran out and the item was taken back' }
end

-- judge_target: may this record go to that lane? Asked once per status of a group, not once per claim.
-- `needed`: the only lane it may be, where the board and not the agent decides.
local function judge_target(context, record, lane, kind, needed)
  local known = lane.judged[record.status]
  if known ~= nil then return known or nil end
  local answer = false
  local place = lane.section and context.rules.place(lane.section, lane.status)
  if not place then -- guard: end_place
    answer = { 'place', lane.name }
  elseif kind == 'complete' and not context.rules.step(record.status, lane.status) then -- guard: end_step
    answer = { 'step', record.status, lane.status }
  elseif needed and lane.name ~= needed then -- guard: end_needed
    answer = { 'place', lane.name }
  end
  lane.ready = place ~= '-'
  lane.judged[record.status] = answer
  return answer or nil
end

local function judge_texts(context, record, claim, section)
  if claim.payload == '' then return nil end
  if claim.version ~= record.version then return { 'version', record.version } end -- guard: end_version
  local bytes = context.rules.limits(section).bytes
  if bytes > 0 and #claim.payload > bytes then return { 'large', #claim.payload, bytes } end -- guard: end_bytes
  return nil
end

local function remember_ending(record, token, kind)
  local ending = token .. ':' .. kind .. ':' .. record.version
  record.endings = record.endings == '' and ending or ending .. ',' .. string.match(record.endings, '^[^,]*')
end

-- land: the item leaves the agent's hands and goes to its next lane.
local function land(context, group, claim, record, kind, lane, delay_ms)
  local changes, from, agent = context.changes, lane_of(record), record.holder
  record.section, record.status, record.requires = lane.section, lane.status, lane.requires
  record.version = plus(record.version, 1)
  record.holder, record.origin = '', ''
  remember_ending(record, claim.token, kind)
  take_out(changes, group.from.timed, claim.id)
  if lane.ready and delay_ms > 0 then
    put_in(changes, lane.timed, whole(context.now_ms + delay_ms), claim.id)
  else
    put_in(changes, lane.line, score_of(record), claim.id, lane.ready and lane.bell or nil)
  end
  count(changes, context.held, agent, -1)
  count(changes, context.tallies, agent .. '|' .. kind, 1)
  change(changes, claim.id, record, kind, from, lane.name, agent, claim.token, group.reason, group.trace)
  if group.error ~= '' then context.troubles[#context.troubles + 1] = { id = claim.id, line = group.error } end
  return { kind, record.version }
end

local function finish(context, group, claim, record)
  local kind, rules, refused = group.kind, context.rules, nil
  if kind == 'complete' then
    refused = judge_target(context, record, group.to, kind) or judge_texts(context, record, claim, group.to.section)
    if refused then return refused end
    record.attempts, record.crashes = '0', '0'
    if claim.payload ~= '' then
      context.texts[#context.texts + 1] = claim.id
      context.texts[#context.texts + 1] = claim.payload
    end
    if claim.result ~= '' then
      context.results[#context.results + 1] = claim.id
      context.results[#context.results + 1] = claim.result
    end
    return land(context, group, claim, record, 'completed', group.to, group.delay_ms)
  end
  if kind == 'fail' or kind == 'give_up' then
    local from, retry = group.from, rules.retry(record.section)
    local waits = lane_of(record, retry ~= '' and retry or from.status)
    refused = judge_target(context, record, group.to, kind, waits)
      or judge_target(context, record, group.quarantine, kind, lane_of(record, rules.quarantine()))
    if refused then return refused end
    if kind == 'give_up' or worn_out(rules.limits(record.section), record) then -- guard: fail_worn_out
      return land(context, group, claim, record, 'quarantined', group.quarantine, 0)
    end
    return land(context, group, claim, record, 'failed', group.to, group.delay_ms)
  end
  refused = judge_target(context, record, group.from, kind)
  if refused then return refused end
  record.attempts = whole(math.max(0, tonumber(record.attempts) - 1)) -- neither a failure nor a crash
  return land(context, group, claim, record, ENDED[kind], group.from, group.delay_ms)
end

local function is_revoked(context, agent)
  local known = context.revoked[agent]
  if known == nil then
    known = redis.call('HGET', context.gates, 'agent:' .. agent) == 'revoked'
    context.revoked[agent] = known
  end
  return known
end

local function judge_claim(context, group, claim, record, ends_ms)
  if not ENDED[group.kind] then return { 'kind', group.kind } end -- guard: end_kind
  if not record then return { 'missing' } end
  if record.token ~= claim.token or record.holder == '' then return first_answer(record, claim.token, group.kind) end -- guard: end_token
  if (record.section .. '/' .. record.origin .. '/' .. record.requires) ~= group.from.name then -- guard: end_lane
    return { 'lost', 'it was claimed from ' .. record.section .. '/' .. record.origin .. '/' .. record.requires }
  end
  if group.kind == 'revoke' then return nil end
  if tonumber(ends_ms or 0) <= context.now_ms then return { 'lost', 'the lease ran out' } end -- guard: end_lease
  if is_revoked(context, record.holder) then return { 'lost', 'the agent was revoked' } end -- guard: end_revoked
  return nil
end

local function read_groups(keys, argv)
  local groups, at = {}, 1
  local function lane(index)
    local first = 11 + (tonumber(index) - 1) * 3
    local name = lane_name(keys[first])
    local section, status, requires = split_lane(name)
    return {
      line = keys[first], timed = keys[first + 1], bell = keys[first + 2], name = name,
      section = section, status = status, requires = requires, judged = {},
    }
  end
  while argv[at] do
    local kind, from, to, quarantine, delay_ms, reason, trace, error, n = unpack(argv, at, at + 8)
    local group = {
      kind = kind, from = lane(from), to = lane(to), quarantine = lane(quarantine), delay_ms = tonumber(delay_ms),
      reason = reason, trace = trace, error = error, claims = {}, ids = {},
    }
    at = at + 9
    for i = 1, tonumber(n) do
      local id, token, version, payload, result = unpack(argv, at, at + 4)
      group.claims[i] = { id = id, token = token, version = version, payload = payload, result = result }
      group.ids[i] = id
      at = at + 5
    end
    groups[#groups + 1] = group
  end
  return groups
end

local function end_claims(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local context = {
    now_ms = now_ms, rules = read_rules(keys[1]), gates = keys[6], held = keys[7], tallies = keys[10],
    changes = collect_changes(keys[2], keys[4], keys[5]), texts = {}, results = {}, troubles = {}, revoked = {},
  }
  local answers, seen = {}, {}
  for _, group in ipairs(read_groups(keys, argv)) do
    local packed = redis.call('HMGET', keys[2], unpack(group.ids))
    local ends = redis.call('ZMSCORE', group.from.timed, unpack(group.ids))
    for i, claim in ipairs(group.claims) do
      local record = seen[claim.id] or unpack_record(packed[i]) -- guard: end_twice
      local answer = judge_claim(context, group, claim, record, ends[i])
      if not answer then
        answer = finish(context, group, claim, record)
        seen[claim.id] = record -- as it is now: who ends it once more gets the first answer
      end
      answers[#answers + 1] = answer
    end
  end
  write_changes(context.changes)
  if #context.texts > 0 then redis.call('HSET', keys[3], unpack(context.texts)) end
  if #context.results > 0 then redis.call('HSET', keys[8], unpack(context.results)) end
  for _, trouble in ipairs(context.troubles) do remember_error(keys[9], trouble.id, trouble.line) end
  return answers
end
register('end_claims', end_claims, { 'allow-oom' })
