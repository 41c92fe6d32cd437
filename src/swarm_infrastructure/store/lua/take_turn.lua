-- take_turn: is it the caller's turn to do what one process in a while is to do? Also when Redis is out of memory.
-- KEYS     1 turn   string, for that while
-- ARGV     1 while_ms (> 0)
-- Returns  1 or 0
local function take_turn(keys, argv)
  return redis.call('SET', keys[1], '1', 'NX', 'PX', argv[1]) and 1 or 0
end
register('take_turn', take_turn, { 'allow-oom' })
