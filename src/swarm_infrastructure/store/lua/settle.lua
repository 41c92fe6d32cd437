-- settle: book what a call cost, once, and free what was held for it; keep its answer for the item in the same breath.
-- Works without a reservation too: money that was spent is booked, whatever became of the hold.
-- KEYS     1 board  2 limits  3 spend  4 reservations  5 reservations_due  6 ledger  7 gates  8 answers of the item, or the board
-- ARGV     1 id  2 usd (nano)  3 tokens  4 requests  5 keep_ms: how long a repeat is recognised  6 more (JSON for the ledger)
--          7 step or ''  8 answer  9 answer's ttl_ms  10 meta
--          then per counter: field, limit name (for a call that nothing was reserved for)
-- Returns  {'settled', now_ms, per alert: field, threshold, settled, limit}   {'again', usd}: it was settled before
local function settle(keys, argv)
  local context, id = money(keys), argv[1]
  local usd, tokens, requests = tonumber(argv[2]), tonumber(argv[3]), tonumber(argv[4])
  local reservation = read_reservation(redis.call('HGET', context.reservations, id))
  if reservation and reservation.state == 'settled' then return { 'again', whole(reservation.usd) } end -- guard: settle_again
  if not reservation then
    reservation = { state = 'none', usd = 0, tokens = 0, requests = 0, rows = table.concat(argv, ' ', 11), meta = argv[10] }
  end
  local told
  if reservation.state == 'unknown' then -- it was booked at the estimate: correct that
    told = book(context, id, reservation, 'corrected', usd - reservation.usd, tokens - reservation.tokens,
      requests - reservation.requests, false, argv[6])
  else
    local held = reservation.state == 'open' or reservation.state == 'sent'
    told = book(context, id, reservation, 'settled', usd, tokens, requests, held, argv[6])
  end
  if argv[7] ~= '' then
    redis.call('HSETNX', keys[8], argv[7], argv[8])
    redis.call('PEXPIRE', keys[8], argv[9])
  end
  reservation.state, reservation.usd, reservation.tokens, reservation.requests = 'settled', usd, tokens, requests
  reservation.rows, reservation.meta = '', ''
  keep_reservation(context, id, reservation, context.now_ms + tonumber(argv[5]))
  open_gates(context)
  return { 'settled', whole(context.now_ms), unpack(told) }
end
register('settle', settle, { 'allow-oom' })
