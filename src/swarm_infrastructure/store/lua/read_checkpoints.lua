-- read_checkpoints: the checkpoints of a task that have not ended yet.
-- KEYS     1 board  2 checkpoints of the task
-- Returns  per checkpoint: stage, `at_us ends_ms token`, a line break, and its text
local function read_checkpoints(keys)
  local _, now_ms = read_clock(keys[1])
  local rows, found = redis.call('HGETALL', keys[2]), {}
  for i = 1, #rows, 2 do
    local ends_ms = string.match(rows[i + 1], '^%d+ (%d+)') -- a torn one is told, and not passed over
    if not ends_ms or tonumber(ends_ms) > now_ms then -- guard: checkpoint_ends
      found[#found + 1] = rows[i]
      found[#found + 1] = rows[i + 1]
    end
  end
  return found
end
register('read_checkpoints', read_checkpoints, { 'no-writes' })
