-- change_item: change an item without a claim on it: by someone who read it, and only if nobody changed it since.
-- KEYS     1 board  2 items  3 payloads  4 events  5 counts   6-8 the lane it is in, or was claimed from: line, timed, bell
--          9-11 the lane it goes to (may be the same): line, timed, bell
-- ARGV     1 id  2 version as read  3 request  4 kind  5 agent or person  6 reason  7 trace  8 priority or ''
--          9 delay_ms or ''  10 payload or ''  11 token of the caller's own claim, or ''
--          kind: updated (stays) | moved (a step of the board) | released (from quarantine: crashes and attempts forgotten)
--                retried (now, not when its delay ends)
-- Returns  {'changed', version}, the same when repeated   {'missing'}   {'version', found}   {'held', agent}   {'kind', kind}
--          {'step', from, to}   {'place', lane}   {'large', bytes, limit}   {'lane', lane}: it is elsewhere   {'priority', p}
--          {'lost', why}: the caller's own claim
-- Event    the kind
local KINDS = { updated = true, moved = true, released = true, retried = true }

local function judge_change(rules, record, argv, from, to, events, ends_ms, now_ms)
  if not KINDS[argv[4]] then return { 'kind', argv[4] } end -- guard: change_kind
  if not record then return { 'missing' } end
  if record.version ~= argv[2] then
    local read = tonumber(argv[2])
    if made(events, argv[1], record, read, argv[3]) then return { 'changed', whole(read + 1) } end -- guard: change_repeat
    return { 'version', record.version } -- guard: change_version
  end
  if record.holder ~= '' and record.token ~= argv[11] then return { 'held', record.holder } end -- guard: change_held
  if record.holder ~= '' and tonumber(ends_ms or 0) <= now_ms then return { 'lost', 'the lease ran out' } end -- guard: change_lease
  if record.holder ~= '' and argv[4] ~= 'updated' then return { 'held', record.holder } end -- guard: change_held_by_self
  if record.holder == '' and lane_of(record) ~= from then return { 'lane', lane_of(record) } end -- guard: change_lane
  local section, status = split_lane(to)
  if not section or not rule.place(rules, section, status) then return { 'place', to } end -- guard: change_place
  if argv[4] == 'moved' and not rule.step(rules, record.status, status) then return { 'step', record.status, status } end -- guard: change_step
  if argv[4] == 'released' and (record.status ~= rule.quarantine(rules) or rule.place(rules, section, status) == '-') then -- guard: change_release
    return { 'step', record.status, status }
  end
  if argv[4] == 'released' and section ~= record.section then return { 'place', to } end -- guard: change_release_section
  if argv[8] ~= '' and not string.find(argv[8], '^%d$') then return { 'priority', argv[8] } end -- guard: change_priority
  if (argv[4] == 'updated' or argv[4] == 'retried') and record.holder == '' and from ~= to then return { 'lane', from } end -- guard: change_stay
  local bytes = rule.limits(rules, section).bytes
  if bytes > 0 and #argv[10] > bytes then return { 'large', #argv[10], bytes } end -- guard: change_bytes
  return nil
end

local function change_item(keys, argv)
  local id, kind, priority, delay_ms, payload = argv[1], argv[4], argv[8], tonumber(argv[9] ~= '' and argv[9] or 0), argv[10]
  local _, now_ms = read_clock(keys[1])
  local rules = { board = keys[1] }
  local from, to = lane_name(keys[6]), lane_name(keys[9])
  local record = unpack_record(redis.call('HGET', keys[2], id))
  local waits_ms = redis.call('ZSCORE', keys[7], id)
  local refused = judge_change(rules, record, argv, from, to, keys[4], waits_ms, now_ms)
  if refused then return refused end

  local changes = collect_changes(keys[2], keys[4], keys[5], argv[3])
  local held = record.holder ~= ''
  if priority ~= '' then record.priority = priority end
  record.version = plus(record.version, 1)
  if not held then
    local before = lane_of(record)
    record.section, record.status, record.requires = split_lane(to)
    if kind == 'moved' or kind == 'released' then record.attempts, record.crashes = '0', '0' end
    local ready = rule.place(rules, record.section, record.status) ~= '-'
    if kind == 'updated' and waits_ms then
      -- a delayed item stays delayed
    else
      redis.call('ZREM', keys[6], id)
      redis.call('ZREM', keys[7], id)
      if ready and delay_ms > 0 then
        put_in(changes, keys[10], whole(now_ms + delay_ms), id)
      else
        put_in(changes, keys[9], score_of(record.priority, record.seq), id, ready and keys[11] or nil)
      end
    end
    change(changes, id, record, kind, before, to, argv[5], '', argv[6], argv[7])
  else
    change(changes, id, record, kind, lane_of(record), lane_of(record), argv[5], record.token, argv[6], argv[7])
  end
  if payload ~= '' then redis.call('HSET', keys[3], id, payload) end
  write_changes(changes)
  return { 'changed', record.version }
end
register('change_item', change_item)
