-- Steps that retention shares. A log is trimmed by a function that first folds what goes into a base, so that base and log
-- together say what the whole log said; the board's log tells how far.
local function tell_truncated(events, log, entries, last)
  redis.call('XADD', events, '*', 'kind', 'truncated', 'from', '', 'to', '', 'agent', '', 'token', '',
    'reason', log .. ': ' .. entries .. ' entries up to ' .. last, 'trace', '', 'request', '', 'items', '')
end

-- cut_after: drop a log's entries up to the one called `last`.
local function cut_after(log, last)
  local ms, seq = string.match(last, '^(%d+)-(%d+)$')
  return redis.call('XTRIM', log, 'MINID', '=', ms .. '-' .. plus(seq, 1))
end

-- forget_mark: an item's mark ran out; its record must not name it any more.
local function forget_mark(items, id, mark)
  local record = unpack_record(redis.call('HGET', items, id))
  if record and record.dedup == mark then
    record.dedup = ''
    redis.call('HSET', items, id, pack_record(record))
  end
end

-- forget_items: what is kept of items beside their records goes with them: `hashes` by id, and keys of their own.
local function forget_items(hashes, own, ids)
  for _, key in ipairs(hashes) do redis.call('HDEL', key, unpack(ids)) end
  if #own > 0 then redis.call('UNLINK', unpack(own)) end
end

-- outlived: has it rested in a final status for longer than its section keeps such items?
local function outlived(rules, record, now_ms)
  local keep_ms, since_ms = rule.keep(rules, record.section, record.status), string.match(record.event, '^%d+')
  return keep_ms and since_ms and tonumber(since_ms) + keep_ms <= now_ms
end
