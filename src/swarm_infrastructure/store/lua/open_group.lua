-- open_group: begin to read a topic as a group. A group that exists stays where it stands.
-- KEYS     1 bus  2 group  then the topic's partitions, all of them
-- ARGV     1 group  2 id after which it begins ('0': at the earliest, '$': with what comes)
-- Returns  'opened'   'exists'
local function open_group(keys, argv)
  if redis.call('HEXISTS', keys[2], 'open') == 1 then return 'exists' end
  local _, now_ms = read_clock(keys[1])
  open_partitions(keys, 3, argv[1], argv[2])
  redis.call('HSET', keys[2], 'open', whole(now_ms))
  return 'opened'
end
register('open_group', open_group)
