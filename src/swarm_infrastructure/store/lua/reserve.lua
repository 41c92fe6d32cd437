-- reserve: set money aside for model calls, for each in every scope and window at once, or in none.
-- KEYS     1 board  2 limits  3 spend  4 reservations  5 reservations_due  6 ledger  7 gates  8 rates  9 breakers
--          10 payloads  then answers of items
-- ARGV     1 hour's start_ms  2 its end_ms  3 day's start_ms  4 its end_ms
--          then per call: id, usd (nano), tokens, requests, hold_ms, state (open|sent|probe), gate to shut on a breach that pauses
--          ('' for none), meta (JSON for the ledger), key of the answers in which its own may be recorded already (11 = first,
--          '' for none), under which step, a rate ('' for none), its calls per window, its tokens per window, its window_ms,
--          tokens of this call there, a breaker ('' for none), its probes at once, probe_ms, how many counters, then per counter:
--          field (window|scope), limit name
-- Returns  one answer per call: {'reserved', how it passed the breaker: '' | 'probe'}   {'again', state}: this id was reserved before
--          {'granted'}: a probe would be reserved; nothing is held
--          {'answered', answer}: it was paid for before; nothing is held
--          {'window', now_ms}: the caller's clock is off; it asks again with the windows of this time
--          {'exceeded', scope, window, unit, needed, settled, held, limit, breach, resumes_ms}
--          {'unrecorded'}: the item is a replay, and this was not paid for; nothing is held
--          {'open', ms}: the breaker is open; nothing is held
--          {'wait', ms}: there is the money, but it is not its turn under the rate; nothing is held, nothing counted
local EXPIRE_LIMIT = 20

local function first_breach(context, rows, amounts)
  for i, limit_name in ipairs(rows.limits) do
    local limit = limit_of(context, limit_name)
    if limit then
      local first, counter = FIRST_LIMIT[string.sub(rows.fields[i], 1, 1)], rows.counters[i]
      for unit = 1, 3 do
        local most = tonumber(limit[first + unit - 1])
        if most and counter[2 * unit - 1] + counter[2 * unit] + amounts[unit] > most then -- guard: reserve_cap
          return { field = rows.fields[i], name = limit_name, unit = unit, most = most, counter = counter, breach = limit[10] }
        end
      end
    end
  end
end

local function refuse(context, found, amounts, windows, who)
  local letter, scope = string.match(found.field, '^(.)[^|]*|(.*)$')
  local resumes_ms = letter == 'h' and windows[2] or letter == 'd' and windows[4] or '0'
  local unit, settled, held = UNITS[found.unit], found.counter[2 * found.unit - 1], found.counter[2 * found.unit]
  local needed, most = whole(amounts[found.unit]), whole(found.most)
  if who ~= '' and found.breach == 'pause' then
    if string.match(scope, '^role:') then who = scope end -- a role's budget stops all of its agents
    local gate = { 'budget', scope, letter, unit, needed, whole(found.most - settled - held), most, resumes_ms, found.field, found.name }
    local old = redis.call('HGET', context.gates, who)
    if not old or not gate_stands(context, old) then -- guard: gate_kept
      redis.call('HSET', context.gates, who, table.concat(gate, '|'))
    end
  end
  return { 'exceeded', scope, letter, unit, needed, whole(settled), whole(held), most, found.breach, resumes_ms }
end

local FACTS = 19 -- arguments of a call before its counters

local function reserve_one(context, argv, at, n, windows)
  local id, answers, rate = argv[at], argv[at + 8], argv[at + 10]
  local known = read_reservation(redis.call('HGET', context.reservations, id))
  if known then return { 'again', known.state } end -- guard: reserve_again
  if answers ~= '' then
    local answer, replayed = unpack(redis.call('HMGET', context.keys[tonumber(answers)], argv[at + 9], REPLAYED))
    if answer then return { 'answered', answer } end -- guard: reserve_answered
    if replayed then return { 'unrecorded' } end -- guard: reserve_replay
  end
  local amounts = { tonumber(argv[at + 1]), tonumber(argv[at + 2]), tonumber(argv[at + 3]) }
  local rows, first = { fields = {}, limits = {} }, at + FACTS
  for i = 1, n do
    rows.fields[i], rows.limits[i] = argv[first + 2 * i - 2], argv[first + 2 * i - 1]
  end
  rows.counters = counters_of(context, rows.fields)
  local found = first_breach(context, rows, amounts)
  if found then return refuse(context, found, amounts, windows, argv[at + 6]) end
  if argv[at + 5] == 'probe' then return { 'granted' } end -- guard: reserve_probe
  local refused, pass = enter_backend(context.keys[8], context.keys[9], context.now_ms, id, argv, at + 10)
  if refused then return refused end -- guard: reserve_backend
  for _, counter in ipairs(rows.counters) do
    for unit = 1, 3 do counter[2 * unit] = counter[2 * unit] + amounts[unit] end
  end
  touch(context, rows.fields)
  keep_reservation(context, id, {
    state = argv[at + 5], usd = amounts[1], tokens = amounts[2], requests = amounts[3],
    rows = table.concat(argv, ' ', first, first + 2 * n - 1), meta = argv[at + 7],
  }, context.now_ms + tonumber(argv[at + 4]))
  return { 'reserved', pass }
end

local function reserve(keys, argv)
  local context, answers = money(keys), {}
  local now_ms = context.now_ms
  local hour_from, hour_to, day_from, day_to = tonumber(argv[1]), tonumber(argv[2]), tonumber(argv[3]), tonumber(argv[4])
  local fits = now_ms >= hour_from and now_ms < hour_to and now_ms >= day_from and now_ms < day_to
  expire(context, EXPIRE_LIMIT)
  local at = 5
  while at <= #argv do
    local n = tonumber(argv[at + FACTS - 1])
    answers[#answers + 1] = fits and reserve_one(context, argv, at, n, argv) or { 'window', whole(now_ms) } -- guard: reserve_window
    at = at + FACTS + 2 * n
  end
  finish_money(context)
  return answers
end
register('reserve', reserve)
