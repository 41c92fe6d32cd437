-- delete_item: take an item off the board for good, with its payload, result, errors, answers, checkpoints and dedup mark.
-- KEYS     1 board  2 items  3 payloads  4 events  5 counts  6 dedup  7 results  8 errors   9, 10 its lane: line, timed
--          and the keys of its own (answers, checkpoints)
-- ARGV     1 id  2 version as read  3 agent or person  4 reason  5 trace
-- Returns  {'deleted'}   {'missing'}   {'version', found}   {'held', agent}   {'lane', lane}
-- Event    deleted   lane → ''
local function delete_item(keys, argv)
  local id = argv[1]
  local record = unpack_record(redis.call('HGET', keys[2], id))
  if not record then return { 'missing' } end
  if record.holder ~= '' then return { 'held', record.holder } end -- guard: delete_held
  if record.version ~= argv[2] then return { 'version', record.version } end -- guard: delete_version
  if lane_of(record) ~= lane_name(keys[9]) then return { 'lane', lane_of(record) } end -- guard: delete_lane
  local changes = collect_changes(keys[2], keys[4], keys[5])
  take_out(changes, keys[9], id)
  take_out(changes, keys[10], id)
  record.version = plus(record.version, 1)
  change(changes, id, record, 'deleted', lane_of(record), '', argv[3], '', argv[4], argv[5])
  write_changes(changes)
  forget_items({ keys[2], keys[3], keys[7], keys[8] }, { unpack(keys, 11) }, { id })
  if record.dedup ~= '' then
    local first = string.match(redis.call('HGET', keys[6], record.dedup) or '', '^([^|]*)|')
    if first == id then redis.call('HDEL', keys[6], record.dedup) end
  end
  return { 'deleted' }
end
register('delete_item', delete_item, { 'allow-oom' })
