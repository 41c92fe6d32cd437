-- record_step: keep what a step of an item came to, for the holder of its claim, or for one that others hold (a debater); the first
-- record stands. Works when Redis is out of memory: what is done can't be undone.
-- KEYS     1 board  2 items  3 payloads  4 answers of the item  5 gates  6 `timed` of the lane it was claimed from, if
--          there is a claim
-- ARGV     1 id  2 token  3 lane it was claimed from ('' both, if there is none)  4 step  5 answer  6 ttl_ms  7 most fields
-- Returns  {'recorded', answer that stands}   {'lost', why}   {'full', fields}   {'unrecorded'}: the item is a replay
local function record_step(keys, argv)
  local now_us, now_ms = read_clock(keys[1])
  if argv[2] ~= '' then
    local record, ends_ms = unpack_record(redis.call('HGET', keys[2], argv[1])), redis.call('ZSCORE', keys[6], argv[1])
    local lost = claim_lost(record, argv[2], ends_ms, keys[5], now_ms)
    if lost then return { 'lost', lost } end -- guard: step_claim
  end
  local found, replayed = unpack(redis.call('HMGET', keys[4], argv[4], REPLAYED))
  if found then return { 'recorded', found } end -- guard: step_again
  if replayed then return { 'unrecorded' } end -- guard: step_replay
  local fields = redis.call('HLEN', keys[4])
  if fields >= tonumber(argv[7]) then return { 'full', fields } end -- guard: step_full
  keep_answer(keys[4], argv[4], argv[5], argv[6], keys[3], argv[1], argv[3], argv[2], now_us)
  return { 'recorded', argv[5] }
end
register('record_step', record_step, { 'allow-oom' })
