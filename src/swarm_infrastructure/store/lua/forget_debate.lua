-- forget_debate: take a closed debate out of Redis, with its arguments and votes.
-- KEYS     1 board  2 debates  3 debates_closed  4 debate  5 arguments  6 votes
-- ARGV     1 id  2 request  3 '1' to forget it before its time
-- Returns  {'forgotten'}   {'missing'}   {'open'}   {'kept', until_ms}
local function forget_debate(keys, argv)
  local context = debating.begin(keys, argv)
  if not context.debate then
    redis.call('ZREM', keys[3], argv[1])
    return { 'missing' }
  end
  if not context.debate.outcome then return { 'open' } end -- guard: forget_open
  local until_ms = tonumber(redis.call('ZSCORE', keys[3], argv[1]) or 0)
  if argv[3] ~= '1' and until_ms > context.now_ms then return { 'kept', whole(until_ms) } end -- guard: forget_kept
  redis.call('DEL', keys[4], keys[5], keys[6])
  redis.call('ZREM', keys[3], argv[1])
  return { 'forgotten' }
end
register('forget_debate', forget_debate, { 'allow-oom' })
