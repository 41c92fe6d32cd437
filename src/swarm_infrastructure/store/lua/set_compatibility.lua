-- set_compatibility: say what the next version of a subject must fit. A registration that was compared before is compared anew.
-- KEYS     1 schemas  hash  subject → latest|since|compatibility|kind
-- ARGV     1 subject  2 compatibility
-- Returns  {'set'}   {'missing'}: there is no such subject
local function set_compatibility(keys, argv)
  local head = redis.call('HGET', keys[1], argv[1])
  if not head then return { 'missing' } end -- guard: schema_missing
  local latest, since, kind = string.match(head, '^(%d+)|(%d+)|[^|]*|(.*)$')
  redis.call('HSET', keys[1], argv[1], table.concat({ latest, since, argv[2], kind }, '|'))
  return { 'set' }
end
register('set_compatibility', set_compatibility)
