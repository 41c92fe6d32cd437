-- register_schema: give a subject its next version, if it stands as it did when the caller compared the schema with it.
-- KEYS     1 schemas          hash  subject → latest|since|compatibility|kind: versions since..latest are what the next must fit
--          2 schema_versions  hash  subject|version → id, its head and the schema; subject#digest → version;
--                                   @id → subject|version; @ → the newest id
-- ARGV     1 subject  2 the head that the caller saw ('' for none)  3 since  4 compatibility  5 kind  6 digest  7 schema
--          8 most versions of a subject  9 most subjects
-- Returns  {'registered', version, id}   {'changed'}: somebody was quicker, nothing was written
--          {'full', 'versions' or 'subjects'}
local function register_schema(keys, argv)
  local schemas, versions = keys[1], keys[2]
  local subject, since, compatibility, kind = argv[1], argv[3], argv[4], argv[5]
  local head = redis.call('HGET', schemas, subject) or ''
  if head ~= argv[2] then return { 'changed' } end -- guard: schema_changed

  local version = tonumber(string.match(head, '^%d+') or 0) + 1
  if version > tonumber(argv[8]) then return { 'full', 'versions' } end -- guard: schema_versions
  if version == 1 and redis.call('HLEN', schemas) >= tonumber(argv[9]) then return { 'full', 'subjects' } end -- guard: schema_subjects

  local id = redis.call('HINCRBY', versions, '@', 1)
  local name, new_head = subject .. '|' .. version, table.concat({ version, since, compatibility, kind }, '|')
  redis.call('HSET', versions, name, id .. '|' .. new_head .. '\n' .. argv[7], subject .. '#' .. argv[6], version, '@' .. id, name)
  redis.call('HSET', schemas, subject, new_head)
  return { 'registered', version, id }
end
register('register_schema', register_schema)
