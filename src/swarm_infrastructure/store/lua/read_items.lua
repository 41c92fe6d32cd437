-- read_items: items by id, whole.
-- KEYS     1 items  2 payloads  3 results
-- ARGV     ids (1-500)
-- Returns  per id: record, payload, result   (false for what there is not)
local function read_items(keys, argv)
  local records = redis.call('HMGET', keys[1], unpack(argv))
  local payloads = redis.call('HMGET', keys[2], unpack(argv))
  local results = redis.call('HMGET', keys[3], unpack(argv))
  local rows = {}
  for i = 1, #argv do
    rows[3 * i - 2], rows[3 * i - 1], rows[3 * i] = records[i], payloads[i], results[i]
  end
  return rows
end
register('read_items', read_items, { 'no-writes' })
