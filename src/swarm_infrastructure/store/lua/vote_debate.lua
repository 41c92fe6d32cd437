-- vote_debate: an agent gives its one vote. The vote that settles the debate also closes it. Works when Redis is out of memory.
-- KEYS     1 board  2 debates  3 debates_closed  4 debate  5 votes
-- ARGV     1 id  2 request  3 agent  4 role  5 position  6 confidence (thousandths)  7 reason
-- Returns  {'voted', now_ms, closed it, the hash, packed}, the same when repeated; {'standing', …, packed}: the same vote came
--          in an earlier call; {'again', …, packed}: the agent has voted otherwise; {'late', …}: it is closed;
--          {'uninvited', …}   {'option', …}   {'missing'}
--          votes: agent → `number at_ms confidence role position's number request`, a line break, the reason
local VOTE = '^%d+ %d+ (%d+) [^ ]* (%d+) ([^ \n]*)\n'

local function vote_debate(keys, argv)
  local context = debating.begin(keys, argv)
  local debate = context.debate
  if not debate then return { 'missing' } end -- guard: vote_missing
  local agent, role, confidence = argv[3], argv[4], argv[6]
  local option = debating.option(debate, argv[5])
  if not option then return debating.answer(context, 'option') end -- guard: vote_option
  local known = redis.call('HGET', keys[5], agent)
  if known then -- guard: vote_once
    local sure, choice, request = string.match(known, VOTE)
    if request == argv[2] then return debating.answer(context, 'voted', known) end -- guard: vote_repeated
    local same = tonumber(choice) == option and sure == confidence
    return debating.answer(context, same and 'standing' or 'again', known)
  end
  if not debating.invited(debate, agent, role) then return debating.answer(context, 'uninvited') end -- guard: vote_uninvited
  debating.close_due(context)
  if debate.outcome then return debating.answer(context, 'late') end -- guard: vote_late

  local weight = debate.weighted == '1' and tonumber(confidence) or 1000
  debate.votes = whole(redis.call('HINCRBY', keys[4], 'votes', 1))
  redis.call('HINCRBY', keys[4], 'votes|' .. option, 1)
  debate['weight|' .. option] = whole(redis.call('HINCRBY', keys[4], 'weight|' .. option, weight))
  local packed = table.concat({ debate.votes, whole(context.now_ms), confidence, role, whole(option), argv[2] }, ' ') .. '\n' .. argv[7]
  redis.call('HSET', keys[5], agent, packed)
  debating.close_decided(context)
  return debating.answer(context, 'voted', packed)
end
register('vote_debate', vote_debate, { 'allow-oom' })
