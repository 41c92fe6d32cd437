-- look_debate: how a debate stands; closes it if its deadline has passed, or if it is to be cancelled.
-- KEYS     1 board  2 debates  3 debates_closed  4 debate
-- ARGV     1 id  2 request  3 '1' to cancel it  4 the reason
-- Returns  {'stands', now_ms, closed it, the hash}   {'missing'}
local function look_debate(keys, argv)
  local context = debating.begin(keys, argv)
  if not context.debate then return { 'missing' } end -- guard: look_missing
  debating.close_due(context)
  if argv[3] == '1' and not context.debate.outcome then -- guard: look_cancel
    debating.close(context, 'cancelled', context.now_ms, argv[4])
  end
  return debating.answer(context, 'stands')
end
register('look_debate', look_debate, { 'allow-oom' })
