-- A record is an item's state, packed in one string: 16 fields between bars, in the order below (items.py reads the same).
-- All of them stay text in Lua too. The payload lies apart, so that a step in a long text's life rewrites 80 bytes and not the text.
--   section, status, requires   where it stands; requires is a capability tag or ''
--   priority, seq               its place in the line: the smaller priority first, then the smaller seq
--   version                     grows by one with each change
--   attempts, crashes           claims since it came to this section that were not handed back; leases that ran out
--   token, holder, origin       of the last claim; holder and origin (the status it was claimed from) are '' unless held
--   event, created_ms           id of its newest event; '' stands for that event's time (an item nobody touched yet)
--   request                     id of the call that put it on the board
--   endings                     token:kind:version of the last two claims that ended, newest first
--   dedup                       its key in the dedup table, or ''
local RECORD = '^([^|]*)|([^|]*)|([^|]*)|(%d)|(%d+)|(%d+)|(%d+)|(%d+)|'
  .. '([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$'

local function unpack_record(text)
  if not text then return nil end
  local section, status, requires, priority, version, seq, attempts, crashes, token, holder, origin, event, created_ms,
    request, endings, dedup = string.match(text, RECORD)
  if not section then return nil end
  return {
    section = section, status = status, requires = requires, priority = priority, version = version, seq = seq,
    attempts = attempts, crashes = crashes, token = token, holder = holder, origin = origin, event = event,
    created_ms = created_ms, request = request, endings = endings, dedup = dedup,
  }
end

local function pack_record(record)
  return table.concat({
    record.section, record.status, record.requires, record.priority, record.version, record.seq, record.attempts,
    record.crashes, record.token, record.holder, record.origin, record.event, record.created_ms, record.request,
    record.endings, record.dedup,
  }, '|')
end

-- A lane is the line of all items with one section, status and capability; its name ends its keys.
local function lane_of(record, status)
  return record.section .. '/' .. (status or record.status) .. '/' .. record.requires
end

local function lane_name(key)
  return string.match(key, ':lane:(.*)$')
end

local function split_lane(name)
  return string.match(name, '^([^/|]*)/([^/|]*)/([^/|]*)$') -- a bar would tear the record
end

-- score: priority first, then the order of arrival: the priority's digit before 15 digits of seq. Priority 9 leaves room
-- for 7e12 items below 2^53. Put together as text, because formatting a number is slow.
local function score_of(record)
  return record.priority .. string.sub('000000000000000', #record.seq + 1) .. record.seq
end
