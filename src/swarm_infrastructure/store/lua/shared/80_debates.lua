-- Steps that every call about a debate shares. A debate is a hash:
--   facts                           digest of what it was opened with; opening it again must bring the same
--   topic, item, opened_by          texts that Lua does not read
--   options                         the positions, with line breaks between; a position's number is its place here, from 1
--   voters, roles                   who may vote, with blanks between; nobody named: anybody
--   expected, quorum                votes that there can be (0: not known), and that an outcome needs
--   threshold                       the share of the weight that a position needs, in thousandths
--   weighted                        '1': a vote weighs its confidence (thousandths); '': each weighs 1000
--   arguments_each, arguments_most  how many an agent may bring, and all together
--   keep_ms, opened_ms, deadline_ms
--   arguments, votes                how many there are
--   votes|N, weight|N               votes for position N, and what they weigh together
--   outcome, how, leaders, weight, total, decided_ms, closer, reason   once it is closed; nothing of that changes any more
-- An open debate stands in `debates` by its deadline, a closed one in `debates_closed` by when it may be forgotten.
-- Every call about a debate begins with the keys 1 board  2 debates  3 debates_closed  4 debate, and with the arguments 1 id
-- 2 request, and answers {word, now_ms, '1' if this request closed it or '', the hash, …}.
local debating = {}

function debating.begin(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local context = { now_ms = now_ms, open = keys[2], closed = keys[3], key = keys[4], id = argv[1], request = argv[2] }
  local flat = redis.call('HGETALL', keys[4])
  if #flat > 0 then
    context.debate = {}
    for i = 1, #flat, 2 do context.debate[flat[i]] = flat[i + 1] end
  end
  return context
end

function debating.answer(context, word, ...)
  local mine = redis.call('HGET', context.key, 'closer') == context.request
  return { word, whole(context.now_ms), mine and '1' or '', redis.call('HGETALL', context.key), ... }
end

-- option: the number of a position, or nil.
function debating.option(debate, position)
  for i, option in ipairs(split(debate.options, '\n')) do
    if option == position then return i end
  end
  return nil
end

-- invited: is this agent, or its role, among those who were named? Where nobody was, everybody is.
function debating.invited(debate, agent, role)
  if debate.voters == '' and debate.roles == '' then return true end
  local function named(list, name)
    return name ~= '' and string.find(' ' .. list .. ' ', ' ' .. name .. ' ', 1, true) ~= nil
  end
  return named(debate.voters, agent) or named(debate.roles, role)
end

-- standing: the positions with the greatest weight, that weight, the greatest below the first of them, and all together.
function debating.standing(debate)
  local leaders, best, second, total = {}, -1, 0, 0
  for i in ipairs(split(debate.options, '\n')) do
    local weight = tonumber(debate['weight|' .. i] or 0)
    total = total + weight
    if weight > best then
      second, best, leaders = math.max(best, 0), weight, { i }
    else
      if weight == best then leaders[#leaders + 1] = i end
      second = math.max(second, weight)
    end
  end
  return leaders, best, second, total
end

-- judge: what the votes say as they are now.
function debating.judge(debate, leaders, best, total)
  if tonumber(debate.votes) < tonumber(debate.quorum) then return 'no_quorum' end -- guard: debate_quorum
  if total == 0 then return 'no_consensus' end -- guard: debate_weightless
  if #leaders > 1 then return 'tie' end -- guard: debate_tie
  if best * 1000 < tonumber(debate.threshold) * total then return 'no_consensus' end -- guard: debate_threshold
  return 'consensus'
end

-- close: the verdict, once and for good.
function debating.close(context, how, at_ms, reason)
  local debate = context.debate
  local leaders, best, _, total = debating.standing(debate)
  local outcome = how == 'cancelled' and how or debating.judge(debate, leaders, best, total)
  redis.call('HSET', context.key, 'outcome', outcome, 'how', how, 'leaders', table.concat(leaders, ' '), 'weight', whole(best),
    'total', whole(total), 'decided_ms', whole(at_ms), 'closer', context.request, 'reason', reason)
  redis.call('ZREM', context.open, context.id)
  redis.call('ZADD', context.closed, whole(context.now_ms + tonumber(debate.keep_ms)), context.id)
  debate.outcome = outcome
end

-- close_due: whoever comes first after the deadline closes the debate, as of the deadline.
function debating.close_due(context)
  local debate = context.debate
  if debate.outcome then return end -- guard: debate_closed_once
  if tonumber(debate.deadline_ms) > context.now_ms then return end -- guard: debate_deadline
  debating.close(context, 'deadline', tonumber(debate.deadline_ms), '')
end

-- close_decided: the vote that settles it closes the debate: the last expected one, or one after which the votes still out
-- could not change the winner, whoever got them all with full confidence.
function debating.close_decided(context)
  local debate = context.debate
  local expected, votes = tonumber(debate.expected), tonumber(debate.votes)
  if expected == 0 then return end -- guard: debate_open_ended
  if votes >= expected then return debating.close(context, 'all', context.now_ms, '') end -- guard: debate_all
  if votes < tonumber(debate.quorum) then return end -- guard: debate_early_quorum
  local _, best, second, total = debating.standing(debate)
  local out = (expected - votes) * 1000
  if best <= second + out then return end -- guard: debate_early_lead
  if best * 1000 < tonumber(debate.threshold) * (total + out) then return end -- guard: debate_early_threshold
  debating.close(context, 'certain', context.now_ms, '')
end
