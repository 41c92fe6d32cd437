-- trim_events: the oldest events go; what they made of each item that lives on is kept in the base.
-- KEYS     1 board  2 events
--          3 base   hash  item → version|lane|origin|holder|token|attempts|crashes|event: its state after the last event that
--                         went; '' → the newest entry that went, how many did, and how many changes did not follow on another
-- ARGV     1 entries to keep  2 begin when there are more than this  3 keep_ms: entries that are younger stay
--          4 entries from which on readers (consumer groups of the log) are not waited for  5 most changes to fold (1-1000)
-- Returns  {entries that went, '1' if more should go now, else '0'}
-- Event    truncated
local PAGE = 50
local ENDS = { completed = true, failed = true, quarantined = true, handed_back = true, revoked = true, lease_ended = true }
local RESETS = { submitted = true, completed = true, moved = true, released = true }
local BASE = '^(%d+)|([^|]*)|([^|]*)|([^|]*)|(%d*)|(%d+)|(%d+)|([^|]*)$'

local function read_base(text)
  local version, lane, origin, holder, token, attempts, crashes, event = string.match(text or '', BASE)
  if not version then return nil end
  return {
    version = version, lane = lane, origin = origin, holder = holder, token = token, attempts = tonumber(attempts),
    crashes = tonumber(crashes), event = event,
  }
end

local function pack_base(state)
  return table.concat({
    state.version, state.lane, state.origin, state.holder, state.token, whole(state.attempts), whole(state.crashes), state.event,
  }, '|')
end

-- fold: what one change makes of an item's state, as `swarm audit` does it; false if it left the board.
local function fold(state, entry, event, version, agent, token)
  local kind = event.kind
  if kind == 'deleted' then return false end -- guard: trim_gone
  state = state or { origin = '', holder = '', token = '', attempts = 0, crashes = 0 }
  if kind == 'claimed' then
    state.holder, state.token, state.origin = agent, token, event.from
    state.attempts = state.attempts + 1
  elseif ENDS[kind] then
    state.holder = ''
  end
  if RESETS[kind] then
    state.attempts, state.crashes = 0, 0
  elseif kind == 'handed_back' or kind == 'revoked' then
    state.attempts = math.max(0, state.attempts - 1)
  elseif kind == 'lease_ended' or (kind == 'quarantined' and string.sub(event.reason, 1, 13) == 'lease ended (') then
    state.crashes = state.crashes + 1
  end
  state.version, state.lane, state.event = version, event.to, entry
  return state
end

local function fold_entry(context, entry, fields)
  local event = by_name(fields)
  local rows = read_rows(event.items or '')
  for _, row in ipairs(rows) do
    if context.state[row[1]] == nil then context.ids[#context.ids + 1] = row[1] end
  end
  if #context.ids > 0 then
    for i, text in ipairs(redis.call('HMGET', context.base, unpack(context.ids))) do
      context.state[context.ids[i]] = read_base(text) or false
    end
    context.ids = {}
  end
  for _, row in ipairs(rows) do
    local id, version = row[1], row[2]
    local state = context.state[id]
    local follows = state and event.kind ~= 'submitted' and plus(state.version, 1) == version and state.lane == event.from
    if not follows and (state or event.kind ~= 'submitted') then context.misfits = context.misfits + 1 end -- guard: trim_misfits
    local agent, token = row[4] ~= '' and row[4] or event.agent, row[4] ~= '' and row[5] or event.token
    context.state[id] = fold(state or nil, entry, event, version, agent, token)
    if not context.touched[id] then
      context.touched[id] = true
      context.order[#context.order + 1] = id
    end
  end
  context.rows = context.rows + #rows
end

local function write_base(context, entries, last)
  local stored, gone = {}, {}
  for _, id in ipairs(context.order) do
    local state = context.state[id]
    if state then
      stored[#stored + 1] = id
      stored[#stored + 1] = pack_base(state)
    else
      gone[#gone + 1] = id
    end
  end
  local _, before, misfits = string.match(redis.call('HGET', context.base, '') or '', '^(%S+) (%d+) (%d+)$')
  stored[#stored + 1] = ''
  stored[#stored + 1] = last .. ' ' .. plus(before or '0', entries) .. ' ' .. plus(misfits or '0', context.misfits)
  redis.call('HSET', context.base, unpack(stored))
  if #gone > 0 then redis.call('HDEL', context.base, unpack(gone)) end
end

local function trim_events(keys, argv)
  local events, keep, begin, keep_ms = keys[2], tonumber(argv[1]), tonumber(argv[2]), tonumber(argv[3])
  local hard, most = tonumber(argv[4]), tonumber(argv[5])
  local length = redis.call('XLEN', events)
  if length <= begin then return { 0, '0' } end -- guard: trim_begin
  local _, now_ms = read_clock(keys[1])
  local needed = unacknowledged(events)
  local context = { base = keys[3], state = {}, ids = {}, touched = {}, order = {}, rows = 0, misfits = 0 }
  local entries, last, stopped = 0, nil, false
  while not stopped and context.rows < most and length - entries > keep do
    local page = redis.call('XRANGE', events, last and '(' .. last or '-', '+', 'COUNT', PAGE)
    for _, row in ipairs(page) do
      local entry, left = row[1], length - entries
      if left <= keep or context.rows >= most then break end
      if id_parts(entry) > now_ms - keep_ms then stopped = true end -- guard: trim_young
      if needed and left <= hard and not id_before(entry, needed) then stopped = true end -- guard: trim_reader
      if stopped then break end
      fold_entry(context, entry, row[2])
      entries, last = entries + 1, entry
    end
  end
  if entries == 0 then return { 0, '0' } end
  write_base(context, entries, last)
  cut_after(events, last)
  tell_truncated(events, 'events', entries, last)
  return { entries, not stopped and length - entries > keep and '1' or '0' }
end
register('trim_events', trim_events, { 'allow-oom' })
