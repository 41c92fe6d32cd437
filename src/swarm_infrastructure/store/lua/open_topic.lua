-- open_topic: enter a topic in the registry, or change what of it may change. How many partitions it has never does: its
-- keys would go to other partitions, and lose their order.
-- KEYS     1 bus  2 topics
-- ARGV     1 name  2 partitions ('': whatever it has, 8 if it is new)  3 keep_ms  4 keep_entries  5 most
--          ('0': no limit, '': as it is; by default a week, no limit, a million)
-- Returns  {'opened', partitions, keep_ms, keep_entries, most}   {'partitions', found}
local function open_topic(keys, argv)
  local old = read_settings(keys[2], argv[1])
  if old and argv[2] ~= '' and tonumber(argv[2]) ~= old.partitions then return { 'partitions', old.partitions } end -- guard: open_partitions
  local settings = {
    old and old.partitions or tonumber(argv[2]) or 8,
    tonumber(argv[3]) or (old and old.keep_ms or 604800000),
    tonumber(argv[4]) or (old and old.keep_entries or 0),
    tonumber(argv[5]) or (old and old.most or 1000000),
  }
  for i, number in ipairs(settings) do settings[i] = whole(number) end
  redis.call('HSET', keys[2], argv[1], table.concat(settings, '|'))
  return { 'opened', unpack(settings) }
end
register('open_topic', open_topic)
