-- replay_group: set a group to another place of its topic. What is in somebody's hands is theirs no more.
-- KEYS     1 bus  2 group  then the topic's partitions, all of them
-- ARGV     1 group  2 id after which it goes on ('0': at the earliest, '$': with what comes)
-- Returns  'replayed'   'group': there is no such group
local function replay_group(keys, argv)
  if redis.call('HEXISTS', keys[2], 'open') == 0 then return 'group' end -- guard: replay_group
  for i = 3, #keys do
    redis.call('XGROUP', 'DESTROY', keys[i], argv[1])
    redis.call('HDEL', keys[2], whole(i - 3))
  end
  open_partitions(keys, 3, argv[1], argv[2])
  return 'replayed'
end
register('replay_group', replay_group)
