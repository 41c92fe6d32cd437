-- settle: how calls went on: sent, settled, or released because they were never sent. Each once; also when Redis is out of memory.
-- KEYS     1 board  2 limits  3 spend  4 reservations  5 reservations_due  6 ledger  7 gates  8 rates  9 breakers
--          10 payloads  then answers of items
-- ARGV     per step: its name, how many arguments, then those:
--          sent      id, hold_ms: for how long the holder is believed to live from now on
--          released  id, keep_ms: how long a repeat is recognised
--          settled   id, usd (nano), tokens, requests, keep_ms, more (JSON for the ledger), key of answers (11 = first, '' none), step,
--                    answer, answer's ttl_ms, meta, item, stage ('' unless its holder asked), token, then per counter for a call that nothing was reserved for: field, limit name
--          reported  id of the call, breaker, ok | failed | unknown, failures that open it, recovery_ms, successes that close it
-- Returns  one answer per step: {'sent'}  {'released'}  {'settled', per alert: field, threshold, settled, limit}
--          {'counted' | 'opened' | 'closed' | 'late'}: of a report
--          {'again'}: it was settled before   {'ended', state}: it has ended otherwise; nothing changed   {'missing'}
local steps = {}

-- sent: a reserved call is about to leave; from here on its hold is never freed for nothing.
function steps.sent(context, id, reservation, argv, at)
  if not reservation then return { 'missing' } end
  if reservation.state ~= 'open' and reservation.state ~= 'sent' then return { 'ended', reservation.state } end -- guard: mark_ended
  reservation.state = 'sent'
  keep_reservation(context, id, reservation, context.now_ms + tonumber(argv[at + 1]))
  return { 'sent' }
end

function steps.released(context, id, reservation, argv, at)
  if not reservation then return { 'missing' } end
  if reservation.state == 'released' then return { 'released' } end
  if reservation.state ~= 'open' then return { 'ended', reservation.state } end -- guard: release_sent
  unhold(context, reservation)
  reservation.state = 'released'
  keep_reservation(context, id, reservation, context.now_ms + tonumber(argv[at + 1]))
  return { 'released' }
end

-- settled: money that was spent is booked, whatever became of the hold; the answer is kept for the item in the same breath.
function steps.settled(context, id, reservation, argv, at, n)
  local usd, tokens, requests = tonumber(argv[at + 1]), tonumber(argv[at + 2]), tonumber(argv[at + 3])
  if reservation and reservation.state == 'settled' then return { 'again' } end -- guard: settle_again
  if not reservation then
    reservation = {
      state = 'none', usd = 0, tokens = 0, requests = 0, rows = table.concat(argv, ' ', at + 14, at + n - 1), meta = argv[at + 10],
    }
  end
  local told
  if reservation.state == 'unknown' then -- it was booked at the estimate: correct that
    told = book(context, id, reservation, 'corrected', usd - reservation.usd, tokens - reservation.tokens,
      requests - reservation.requests, false, argv[at + 5])
  else
    local held = reservation.state == 'open' or reservation.state == 'sent'
    told = book(context, id, reservation, 'settled', usd, tokens, requests, held, argv[at + 5])
  end
  if argv[at + 6] ~= '' then
    keep_answer(context.keys[tonumber(argv[at + 6])], argv[at + 7], argv[at + 8], argv[at + 9], context.keys[10], argv[at + 11],
      argv[at + 12], argv[at + 13], context.now_us)
  end
  reservation.state, reservation.usd, reservation.tokens, reservation.requests = 'settled', usd, tokens, requests
  reservation.rows, reservation.meta = '', ''
  keep_reservation(context, id, reservation, context.now_ms + tonumber(argv[at + 4]))
  return { 'settled', unpack(told) }
end

function steps.reported(context, id, _, argv, at)
  return { leave_breaker(context.keys[9], argv[at + 1], context.now_ms, id, argv[at + 2], tonumber(argv[at + 3]), tonumber(argv[at + 4]),
    tonumber(argv[at + 5])) }
end

local function settle(keys, argv)
  local context, answers, at = money(keys), {}, 1
  while at <= #argv do
    local step, n, id = steps[argv[at]], tonumber(argv[at + 1]), argv[at + 2]
    local reservation = read_reservation(redis.call('HGET', context.reservations, id))
    answers[#answers + 1] = step(context, id, reservation, argv, at + 2, n)
    at = at + 2 + n
  end
  finish_money(context)
  return answers
end
register('settle', settle, { 'allow-oom' })
