-- reserve: set money aside for a model call in every scope and window at once, or in none.
-- KEYS     1 board  2 limits  3 spend  4 reservations  5 reservations_due  6 ledger  7 gates
-- ARGV     1 id  2 usd (nano)  3 tokens  4 requests  5 hold_ms  6 state: open|sent  7 gate to shut on a breach that pauses, or ''
--          8 hour's start_ms  9 its end_ms  10 day's start_ms  11 its end_ms  12 meta (JSON for the ledger)
--          then per counter: field (window|scope), limit name
-- Returns  {'reserved', now_ms}   {'again', state}: this id was reserved before
--          {'window', now_ms}: the caller's clock is off; it asks again with the windows of this time
--          {'exceeded', scope, window, unit, needed, settled, held, limit, breach, resumes_ms}
local EXPIRE_LIMIT = 20

local function first_breach(counters, rows, amounts, limits)
  for i, row in ipairs(rows) do
    local limit = limits[row.limit]
    local first = limit and FIRST_LIMIT[string.sub(row.field, 1, 1)]
    for unit = 1, first and 3 or 0 do
      local most, counter = tonumber(limit[first + unit - 1]), counters[i]
      if most and counter[2 * unit - 1] + counter[2 * unit] + amounts[unit] > most then -- guard: reserve_cap
        return { row = row, unit = unit, most = most, counter = counter, limit = limit }
      end
    end
  end
end

local function reserve(keys, argv)
  local context, id = money(keys), argv[1]
  local known = read_reservation(redis.call('HGET', context.reservations, id))
  if known then return { 'again', known.state } end -- guard: reserve_again
  local now_ms = context.now_ms
  if now_ms < tonumber(argv[8]) or now_ms >= tonumber(argv[9]) or now_ms < tonumber(argv[10]) or now_ms >= tonumber(argv[11]) then
    return { 'window', whole(now_ms) } -- guard: reserve_window
  end
  expire(context, EXPIRE_LIMIT)

  local amounts = { tonumber(argv[2]), tonumber(argv[3]), tonumber(argv[4]) }
  local rows, fields, names = {}, {}, {}
  for i = 13, #argv, 2 do
    rows[#rows + 1] = { field = argv[i], limit = argv[i + 1] }
    fields[#rows], names[#rows] = argv[i], argv[i + 1]
  end
  local counters = read_rows(context.spend, fields)
  local breach = first_breach(counters, rows, amounts, read_limits(context.limits, names))
  if breach then
    local letter, scope = string.match(breach.row.field, '^(.)[^|]*|(.*)$')
    local resumes_ms = letter == 'h' and argv[9] or letter == 'd' and argv[11] or '0'
    local unit, settled, held = UNITS[breach.unit], breach.counter[2 * breach.unit - 1], breach.counter[2 * breach.unit]
    local needed, most = whole(amounts[breach.unit]), whole(breach.most)
    if argv[7] ~= '' and breach.limit[10] == 'pause' then
      local who = string.match(scope, '^role:') and scope or argv[7] -- a role's budget stops all of its agents
      local gate = { 'budget', scope, letter, unit, needed, whole(breach.most - settled - held), most, resumes_ms, breach.row.field, breach.row.limit }
      if not redis.call('HGET', context.gates, who) then -- guard: gate_kept
        redis.call('HSET', context.gates, who, table.concat(gate, '|'))
      end
    end
    return { 'exceeded', scope, letter, unit, needed, whole(settled), whole(held), most, breach.limit[10], resumes_ms }
  end

  for _, counter in ipairs(counters) do
    for unit = 1, 3 do counter[2 * unit] = counter[2 * unit] + amounts[unit] end
  end
  write_rows(context.spend, fields, counters)
  keep_reservation(context, id, {
    state = argv[6], usd = amounts[1], tokens = amounts[2], requests = amounts[3], rows = table.concat(argv, ' ', 13), meta = argv[12],
  }, now_ms + tonumber(argv[5]))
  return { 'reserved', whole(now_ms) }
end
register('reserve', reserve)
