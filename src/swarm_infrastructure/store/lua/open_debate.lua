-- open_debate: open a debate, once; opening it again with the same facts gives the one that stands.
-- KEYS     1 board  2 debates  3 debates_closed  4 debate
-- ARGV     1 id  2 request  3 digest of the facts  4 deadline_ms from now  then field, value, … (see shared/80_debates.lua)
-- Returns  {'stands', now_ms, closed it, the hash, debates that are due to be closed or forgotten}   {'differs'}
local function open_debate(keys, argv)
  local context = debating.begin(keys, argv)
  if context.debate then
    if context.debate.facts ~= argv[3] then return { 'differs' } end -- guard: debate_facts
    debating.close_due(context)
  else
    local deadline_ms = whole(context.now_ms + tonumber(argv[4]))
    redis.call('HSET', keys[4], 'facts', argv[3], 'opened_ms', whole(context.now_ms), 'deadline_ms', deadline_ms,
      'arguments', '0', 'votes', '0', unpack(argv, 5))
    redis.call('ZADD', keys[2], deadline_ms, argv[1])
  end
  local due = redis.call('ZCOUNT', keys[2], '-inf', context.now_ms) + redis.call('ZCOUNT', keys[3], '-inf', context.now_ms)
  return debating.answer(context, 'stands', due)
end
register('open_debate', open_debate)
