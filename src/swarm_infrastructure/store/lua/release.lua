-- release: free what was held for a call that was never sent.
-- KEYS     1 board  2 limits  3 spend  4 reservations  5 reservations_due  6 ledger  7 gates
-- ARGV     1 id  2 keep_ms: how long a repeat is recognised
-- Returns  {'released'}   {'ended', state}: it was sent, or has ended otherwise; nothing changed   {'missing'}
local function release(keys, argv)
  local context, id = money(keys), argv[1]
  local reservation = read_reservation(redis.call('HGET', context.reservations, id))
  if not reservation then return { 'missing' } end
  if reservation.state == 'released' then return { 'released' } end
  if reservation.state ~= 'open' then return { 'ended', reservation.state } end -- guard: release_sent
  unhold(context, reservation)
  reservation.state = 'released'
  keep_reservation(context, id, reservation, context.now_ms + tonumber(argv[2]))
  open_gates(context)
  return { 'released' }
end
register('release', release, { 'allow-oom' })
