-- register_board: store a board's rules, once; every later client must bring the same ones.
-- KEYS     1 board  hash  digest, definition, and the fields that shared/30_rules.lua names
--          2 counts hash  items by lane
-- ARGV     1 digest  2 '1' to replace another board of this name  then field, value, …
-- Returns  {'registered'}   {'known'}   {'differs', digest}   {'occupied', lane}: items stand where the new board has no
--          place, or may be claimed from a status to which the new board could not take them back
-- ways_back: statuses of a section from which, by the rules in Redis, a claim leads to `claimed`.
local function ways_back(rules, section, claimed)
  local statuses, prefix = {}, 'at|' .. section .. '|'
  for i = 1, #rules, 2 do
    if rules[i + 1] == claimed and string.sub(rules[i], 1, #prefix) == prefix then
      statuses[#statuses + 1] = string.sub(rules[i], #prefix + 1)
    end
  end
  return statuses
end

local function register_board(keys, argv)
  local board, counts = keys[1], keys[2]
  local digest, replace = argv[1], argv[2] == '1'
  local found = redis.call('HGET', board, 'digest')
  if found == digest then return { 'known' } end
  if found and not replace then return { 'differs', found } end -- guard: board_digest

  local places, before = {}, redis.call('HGETALL', board)
  for i = 3, #argv, 2 do places[argv[i]] = argv[i + 1] end
  for _, lane in ipairs(redis.call('HKEYS', counts)) do
    local section, status = split_lane(lane)
    if section and not places['at|' .. section .. '|' .. status] then return { 'occupied', lane } end -- guard: board_occupied
    for _, origin in ipairs(section and ways_back(before, section, status) or {}) do
      if (places['at|' .. section .. '|' .. origin] or '-') == '-' then return { 'occupied', lane } end -- guard: board_claimed
    end
  end

  local offset = redis.call('HGET', board, 'clock_offset_ms')
  redis.call('DEL', board)
  for i = 3, #argv, 2 do redis.call('HSET', board, argv[i], argv[i + 1]) end
  redis.call('HSET', board, 'digest', digest)
  if offset then redis.call('HSET', board, 'clock_offset_ms', offset) end
  return { 'registered' }
end
register('register_board', register_board)
