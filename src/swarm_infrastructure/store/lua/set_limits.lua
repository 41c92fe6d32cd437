-- set_limits: put limits in place, or take them away; agents that stood still for want of money go on at once if it is there.
-- KEYS     1 board  2 limits  3 spend  4 reservations  5 reservations_due  6 ledger  7 gates
-- ARGV     per limit: its name, what was there when it was read ('' for nothing, '*' for anything), its limits ('' takes it away)
-- Returns  {'set'}   {'changed', name}: somebody else changed it since; nothing was written
local function set_limits(keys, argv)
  local context = money(keys)
  for i = 1, #argv, 3 do
    local found = redis.call('HGET', context.limits, argv[i]) or ''
    if argv[i + 1] ~= '*' and found ~= argv[i + 1] and found ~= argv[i + 2] then return { 'changed', argv[i] } end -- guard: limits_changed
  end
  for i = 1, #argv, 3 do
    if argv[i + 2] == '' then redis.call('HDEL', context.limits, argv[i]) else redis.call('HSET', context.limits, argv[i], argv[i + 2]) end
  end
  context.freed = true
  finish_money(context)
  return { 'set' }
end
register('set_limits', set_limits, { 'allow-oom' })
