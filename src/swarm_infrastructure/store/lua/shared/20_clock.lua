-- read_clock: the server's time, asked once per function, in microseconds and whole milliseconds.
-- `clock_offset_ms` on the board is a test's way to move time; nothing but a test writes it.
local function read_clock(board)
  local time = redis.call('TIME')
  local offset_ms = tonumber(redis.call('HGET', board, 'clock_offset_ms') or 0)
  local us = tonumber(time[1]) * 1000000 + tonumber(time[2]) + offset_ms * 1000
  return us, math.floor(us / 1000)
end
