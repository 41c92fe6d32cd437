-- mark_sent: a reserved call is about to leave; from here on its hold is never freed for nothing.
-- KEYS     1 board  2 limits  3 spend  4 reservations  5 reservations_due  6 ledger  7 gates
-- ARGV     1 id  2 hold_ms: for how long the holder is believed to live
-- Returns  {'sent'}   {'ended', state}: it was freed or settled meanwhile; don't send   {'missing'}
local function mark_sent(keys, argv)
  local context = money(keys)
  local reservation = read_reservation(redis.call('HGET', context.reservations, argv[1]))
  if not reservation then return { 'missing' } end
  if reservation.state ~= 'open' and reservation.state ~= 'sent' then return { 'ended', reservation.state } end -- guard: mark_ended
  reservation.state = 'sent'
  keep_reservation(context, argv[1], reservation, context.now_ms + tonumber(argv[2]))
  return { 'sent' }
end
register('mark_sent', mark_sent, { 'allow-oom' })
