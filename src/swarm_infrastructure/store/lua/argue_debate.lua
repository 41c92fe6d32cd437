-- argue_debate: an agent brings an argument, for a position or for none.
-- KEYS     1 board  2 debates  3 debates_closed  4 debate  5 arguments
-- ARGV     1 id  2 request  3 agent  4 role  5 position ('' for none)  6 confidence (thousandths)  7 text
-- Returns  {'argued', now_ms, closed it, the hash, number, packed}, the same when repeated; {'late', …}: it is closed;
--          {'most', …, limit, 'each' | 'all'}   {'uninvited', …}   {'option', …}   {'missing'}
--          arguments: number → `agent at_ms confidence role position's number (0: none)`, a line break, the text;
--          of|AGENT → `request=number …`
local function argue_debate(keys, argv)
  local context = debating.begin(keys, argv)
  local debate = context.debate
  if not debate then return { 'missing' } end -- guard: argue_missing
  local agent, role, position = argv[3], argv[4], argv[5]
  local mine = redis.call('HGET', keys[5], 'of|' .. agent) or ''
  local known = string.match(' ' .. mine, ' ' .. argv[2] .. '=(%d+)')
  if known then return debating.answer(context, 'argued', known, redis.call('HGET', keys[5], known)) end -- guard: argue_again
  local option = position == '' and 0 or debating.option(debate, position)
  if not option then return debating.answer(context, 'option') end -- guard: argue_option
  if not debating.invited(debate, agent, role) then return debating.answer(context, 'uninvited') end -- guard: argue_uninvited
  debating.close_due(context)
  if debate.outcome then return debating.answer(context, 'late') end -- guard: argue_late
  local _, count = string.gsub(mine, '=', '')
  if count >= tonumber(debate.arguments_each) then return debating.answer(context, 'most', debate.arguments_each, 'each') end -- guard: argue_each
  if tonumber(debate.arguments) >= tonumber(debate.arguments_most) then -- guard: argue_most
    return debating.answer(context, 'most', debate.arguments_most, 'all')
  end

  local number = whole(redis.call('HINCRBY', keys[4], 'arguments', 1))
  local packed = table.concat({ agent, whole(context.now_ms), argv[6], role, whole(option) }, ' ') .. '\n' .. argv[7]
  redis.call('HSET', keys[5], number, packed, 'of|' .. agent, mine .. argv[2] .. '=' .. number .. ' ')
  return debating.answer(context, 'argued', number, packed)
end
register('argue_debate', argue_debate)
