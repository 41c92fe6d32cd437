-- keep_checkpoint: keep how far a task has come; it replaces the one of the same stage as a whole.
-- KEYS     1 board  2 items  3 gates  4 checkpoints  5 checkpoints of the task  6 `timed` of the lane it was claimed from (or 4)
-- ARGV     1 task  2 stage  3 token of the caller's claim on the item of this id, or ''  4 ttl_ms  5 most stages  6 text
-- Returns  {'kept', at_us}   {'lost', why}   {'held', agent or ''}: it is or was claimed, and the caller shows no claim   {'full', stages}
-- A checkpoint is `at_us ends_ms token` (0: none), a line break, and the text.
local function keep_checkpoint(keys, argv)
  local now_us, now_ms = read_clock(keys[1])
  local record = unpack_record(redis.call('HGET', keys[2], argv[1]))
  if argv[3] ~= '' then
    local lost = claim_lost(record, argv[3], redis.call('ZSCORE', keys[6], argv[1]), keys[3], now_ms)
    if lost then return { 'lost', lost } end -- guard: checkpoint_claim
  elseif record and record.token ~= '' then -- guard: checkpoint_held
    return { 'held', record.holder } -- also if nobody holds it now: who writes may be one who has lost it
  end
  local stages, last_us = redis.call('HGETALL', keys[5]), 0
  local n, mine = 0, false
  for i = 1, #stages, 2 do
    local at_us, ends_ms = string.match(stages[i + 1], '^(%d+) (%d+)')
    if stages[i] == argv[2] then mine = true end
    if ends_ms and tonumber(ends_ms) <= now_ms then -- guard: checkpoint_over
      redis.call('HDEL', keys[5], stages[i])
    else
      n = n + 1
    end
    last_us = math.max(last_us, tonumber(at_us or 0))
  end
  if not mine and n >= tonumber(argv[5]) then return { 'full', n } end -- guard: checkpoint_full
  local at_us, ends_ms = math.max(now_us, last_us + 1), now_ms + tonumber(argv[4])
  local token = argv[3] ~= '' and argv[3] or '0'
  redis.call('HSET', keys[5], argv[2], whole(at_us) .. ' ' .. whole(ends_ms) .. ' ' .. token .. '\n' .. argv[6])
  redis.call('PEXPIRE', keys[5], whole(math.max(redis.call('PTTL', keys[5]), tonumber(argv[4]))))
  redis.call('ZADD', keys[4], whole(ends_ms), argv[1] .. '|' .. argv[2])
  return { 'kept', whole(at_us) }
end
register('keep_checkpoint', keep_checkpoint)
