-- purge_items: finished items that have rested for longer than their section keeps them leave the board, with all that is
-- theirs but their dedup mark: content that was worked on is not new again because it was forgotten.
-- KEYS     1 board  2 items  3 payloads  4 events  5 counts  6 results  7 errors  8 line of their lane
--          then the keys of each item's own, as many for each (answers, checkpoints)
-- ARGV     1 agent  then ids, in the order of their keys
-- Returns  how many went: not those that changed since they were listed
-- Event    deleted   lane → '', reason retention
local function purge_items(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local rules, lane = { board = keys[1] }, lane_name(keys[8])
  local ids = { unpack(argv, 2) }
  local each = (#keys - 8) / #ids
  local changes, gone, own = collect_changes(keys[2], keys[4], keys[5]), {}, {}
  for i, text in ipairs(redis.call('HMGET', keys[2], unpack(ids))) do
    local record, id = unpack_record(text), ids[i]
    if record and (record.holder ~= '' or lane_of(record) ~= lane) then record = nil end -- guard: purge_lane
    if record and outlived(rules, record, now_ms) then -- guard: purge_kept
      take_out(changes, keys[8], id)
      record.version = plus(record.version, 1)
      change(changes, id, record, 'deleted', lane, '', argv[1], '', 'retention', '')
      gone[#gone + 1] = id
      for k = 9 + (i - 1) * each, 8 + i * each do own[#own + 1] = keys[k] end
    end
  end
  if #gone == 0 then return 0 end
  write_changes(changes)
  forget_items({ keys[2], keys[3], keys[6], keys[7] }, own, gone)
  return #gone
end
register('purge_items', purge_items, { 'allow-oom' })
