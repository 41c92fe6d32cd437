-- A record is what is known of an item, packed in one string: 16 fields between bars, in the order below (items.py reads the
-- same). All of them stay text in Lua too. The payload lies apart, so that a step in a long text's life rewrites 80 bytes and
-- not the text. First stands what is the item's own:
--   event, created_ms           id of its newest event; '' stands for that event's time (an item nobody touched yet)
--   priority, seq               its place in the line: the smaller priority first, then the smaller seq
--   request                     id of the call that put it on the board
--   dedup                       its key in the dedup table, or ''
-- Then its state, which many items share: what a call makes of it is worked out once for all of them (see `stamp_of`).
--   section, status, requires   where it stands; requires is a capability tag or ''
--   version                     grows by one with each change
--   attempts, crashes           claims since it came to this section that were not handed back; leases that ran out
--   token, holder, origin       of the last claim; holder and origin (the status it was claimed from) are '' unless held
--   endings                     token:kind:version of the last two claims that ended, newest first
local RECORD = '^([^|]*)|(%d*|(%d)|(%d+)|[^|]*|[^|]*)|(.*)$'
local OWN = '^(%d*)|%d|%d+|([^|]*)|([^|]*)$'
local STATE = '^([^|]*)|([^|]*)|([^|]*)|(%d+)|(%d+)|(%d+)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$'

-- split_record: event, own (created_ms to dedup, in one piece), priority, seq, state (in one piece); nil if there is none, or
-- a torn one.
local function split_record(text)
  if not text then return nil end
  return match(text, RECORD)
end

-- A lane is the line of all items with one section, status and capability; its name ends its keys.
local function lane_of(state, status)
  return state.section .. '/' .. (status or state.status) .. '/' .. state.requires
end

local function lane_name(key)
  return match(key, ':lane:(.*)$')
end

local function split_lane(name)
  return match(name, '^([^/|]*)/([^/|]*)/([^/|]*)$') -- a bar would tear the record
end

local function pack_state(section, status, requires, version, attempts, crashes, token, holder, origin, endings)
  return section .. '|' .. status .. '|' .. requires .. '|' .. version .. '|' .. attempts .. '|' .. crashes .. '|' .. token
    .. '|' .. holder .. '|' .. origin .. '|' .. endings
end

-- lane_at: what the key of a line says: its lane's name, the parts of it, the rules that speak of it, and the state of an item
-- that is born there. Of a lane that cannot be there: the name, and rules that no board has.
local lane_at = memo(function(key)
  local name = lane_name(key)
  local section, status, requires = split_lane(name)
  if not section then return { name = name, place_rule = '', limits_rule = '' } end
  return {
    name = name, section = section, status = status, requires = requires, place_rule = 'at|' .. section .. '|' .. status,
    limits_rule = 'limits|' .. section, newborn = pack_state(section, status, requires, '1', '0', '0', '', '', '', ''),
  }
end)

-- unpack_state: its fields by name; nil if it is torn.
local function unpack_state(text)
  local section, status, requires, version, attempts, crashes, token, holder, origin, endings = match(text, STATE)
  if not section then return nil end
  return {
    section = section, status = status, requires = requires, version = version, attempts = attempts, crashes = crashes,
    token = token, holder = holder, origin = origin, endings = endings, lane = nil, claimed_from = nil,
  }
end

-- state_of: the same, with the lane it is in and the one it was claimed from; false if it is torn. Many items share a state:
-- it is read once in a call, and the state of items that nobody claimed yet once for all calls. Nobody changes what it holds.
local function read_state(text)
  local state = unpack_state(text)
  if not state then return false end
  state.lane, state.claimed_from = lane_of(state), lane_of(state, state.origin)
  return state
end

local unclaimed = memo(read_state)

local function state_of(context, text)
  local known = context.states
  local state = known and known[text]
  if state == nil then
    if find(text, '||||', 1, true) then return unclaimed(text) end -- no token, no holder, no origin, no ending
    state = read_state(text)
    if known then known[text] = state else context.states = { [text] = state } end
  end
  return state
end

-- unpack_record: all 16 fields by name, for functions that change one item; nil if there is none, or a torn one.
local function unpack_record(text)
  local event, own, priority, seq, state = split_record(text)
  local record = event and unpack_state(state)
  if not record then return nil end
  record.event, record.priority, record.seq = event, priority, seq
  record.created_ms, record.request, record.dedup = match(own, OWN)
  return record
end

-- pack_own, state_text: the two pieces of a record with named fields, as `split_record` gives them.
local function pack_own(record)
  return concat({ record.created_ms, record.priority, record.seq, record.request, record.dedup }, '|')
end

local function state_text(record)
  return pack_state(record.section, record.status, record.requires, record.version, record.attempts, record.crashes,
    record.token, record.holder, record.origin, record.endings)
end

local function pack_record(record)
  return record.event .. '|' .. pack_own(record) .. '|' .. state_text(record)
end

-- score: priority first, then the order of arrival: the priority's digit before 15 digits of seq. Priority 9 leaves room
-- for 7e12 items below 2^53. Put together as text, because formatting a number is slow.
local zeros = { [15] = '' }
for n = 14, 1, -1 do zeros[n] = zeros[n + 1] .. '0' end

local function score_of(priority, seq)
  return priority .. (zeros[#seq] or '') .. seq
end
