-- sketch: lay a text's signature bands down beside those of the texts before it, and learn which of them look alike.
-- Two near-copies that come at the same moment cannot both pass: one of them is laid down first, the other sees it.
-- KEYS     1 bands hash  band → ids   2 order hash  id → its place
-- ARGV     1 id  then bands
-- Returns  ids laid down before this one that share a band, oldest first; the same when repeated
local BAND_IDS = 32 -- a band that this many texts share says nothing any more

local function sketch(keys, argv)
  local id = argv[1]
  if #argv == 1 then return {} end -- guard: sketch_empty
  local place = tonumber(redis.call('HGET', keys[2], id) or 0)
  local laid = place > 0
  if not laid then
    place = redis.call('HLEN', keys[2]) + 1
    redis.call('HSET', keys[2], id, place)
  end
  local bands = { unpack(argv, 2) }
  local found, seen, places = redis.call('HMGET', keys[1], unpack(bands)), { [id] = true }, {}
  for i, ids in ipairs(found) do
    local n, mine = 0, false
    for other in string.gmatch(ids or '', '%S+') do
      n, mine = n + 1, mine or other == id
      if not seen[other] then
        seen[other] = true
        local its_place = tonumber(redis.call('HGET', keys[2], other) or 0)
        if its_place > 0 and its_place < place then places[#places + 1] = { other, its_place } end -- guard: sketch_order
      end
    end
    if not mine and n < BAND_IDS then redis.call('HSET', keys[1], bands[i], (ids and ids .. ' ' or '') .. id) end
  end
  table.sort(places, function(a, b) return a[2] < b[2] end)
  local earlier = {}
  for i, row in ipairs(places) do earlier[i] = row[1] end
  return earlier
end
register('sketch', sketch)
