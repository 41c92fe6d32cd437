-- mark: write a small key of this slot, so that the WAIT behind it speaks of everything that was answered before.
-- WAIT means the newest write of its own connection: without this one, a repeated call, which writes nothing, would be
-- confirmed for nothing. At maxmemory too: what drains must be confirmed as well.
-- KEYS     1 mark  string
-- Returns  {'marked'}
register('mark', function(keys)
  redis.call('SET', keys[1], '1')
  return { 'marked' }
end, { 'allow-oom' })
