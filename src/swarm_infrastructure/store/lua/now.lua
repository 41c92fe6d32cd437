-- now: the time as every function of the board has it.
-- KEYS     1 board
-- Returns  now_ms
local function now(keys)
  local _, now_ms = read_clock(keys[1])
  return whole(now_ms)
end
register('now', now, { 'no-writes' })
