-- clock_at: the server's time, asked once per function, in microseconds and whole milliseconds.
-- `clock_offset_ms` on the board is a test's way to move time; nothing but a test writes it.
local function clock_at(offset_ms)
  local time = redis.call('TIME')
  local us = tonumber(time[1]) * 1000000 + tonumber(time[2])
  if offset_ms then us = us + tonumber(offset_ms) * 1000 end
  return us, floor(us / 1000)
end

-- read_clock: the same, for functions that have nothing else to ask the board.
local function read_clock(board)
  return clock_at(redis.call('HGET', board, 'clock_offset_ms'))
end
