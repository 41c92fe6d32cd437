-- Steps that every booking shares. Amounts are whole nano-dollars, tokens and requests, exact up to 2^53.
-- A counter is a field `window|scope` of the spend hash: `settled,held` of dollars, tokens, requests, then the highest alert
-- level that was told. A window is `t` (for ever), `dDAY` or `hHOUR`; its first letter says which limit holds.
-- A limit is a field of the limits hash, `usd,tokens,requests` for t, d and h, nine numbers or '', then what a breach does and
-- the alert thresholds: `,,5000000000,,,,,,,pause,0.5 0.8`.
local UNITS = { 'usd', 'tokens', 'requests' }
local FIRST_LIMIT = { t = 1, d = 4, h = 7 }

local function split(text, separator)
  local parts = {}
  for part in string.gmatch(text .. separator, '([^' .. separator .. ']*)' .. separator) do parts[#parts + 1] = part end
  return parts
end

local COUNTER = '^(%-?%d+),(%-?%d+),(%-?%d+),(%-?%d+),(%-?%d+),(%-?%d+),(%d+)$'
local function read_counter(text)
  if not text then return { 0, 0, 0, 0, 0, 0, 0 } end
  local a, b, c, d, e, f, g = string.match(text, COUNTER)
  return { tonumber(a), tonumber(b), tonumber(c), tonumber(d), tonumber(e), tonumber(f), tonumber(g) }
end

local function pack_counter(counter)
  return string.format('%d,%d,%d,%d,%d,%d,%d', unpack(counter))
end

-- read_sum: what trimmed lines of the ledger booked in a counter (see trim_ledger).
local function read_sum(text)
  local a, b, c, d = string.match(text or '', '^(%-?%d+),(%-?%d+),(%-?%d+),(%d+)$')
  return { tonumber(a or 0), tonumber(b or 0), tonumber(c or 0), tonumber(d or 0) }
end

-- limit_of: nine limits, breach, thresholds of a name, or nil; read once per call.
local function limit_of(context, name)
  local limit = context.limit[name]
  if limit == nil then
    local text = redis.call('HGET', context.limits, name)
    limit = text and split(text, ',') or false
    context.limit[name] = limit
  end
  return limit or nil
end

-- counters_of: those of these fields; read once per call, and written at its end by `write_counters`.
local function counters_of(context, fields)
  local counters, absent = {}, {}
  for i, field in ipairs(fields) do
    counters[i] = context.counter[field]
    if not counters[i] then absent[#absent + 1] = field end
  end
  if #absent > 0 then
    for i, text in ipairs(redis.call('HMGET', context.spend, unpack(absent))) do
      context.counter[absent[i]] = read_counter(text)
    end
    for i, field in ipairs(fields) do counters[i] = context.counter[field] end
  end
  return counters
end

local function touch(context, fields)
  for _, field in ipairs(fields) do context.touched[field] = true end
end

local function write_counters(context)
  local written = {}
  for field in pairs(context.touched) do
    written[#written + 1] = field
    written[#written + 1] = pack_counter(context.counter[field])
    if #written >= 4000 then
      redis.call('HSET', context.spend, unpack(written))
      written = {}
    end
  end
  if #written > 0 then redis.call('HSET', context.spend, unpack(written)) end
  context.touched = {}
end

-- A reservation: `state usd tokens requests rows`, a line break, then what the ledger says of it; rows: `field limit field limit …`.
-- States: open → sent → settled; open → released; sent → unknown (nobody settled in time) → settled
local function read_reservation(text)
  if not text then return nil end
  local state, usd, tokens, requests, rows, meta = string.match(text, '^(%l+) (%d+) (%d+) (%d+) ([^\n]*)\n(.*)$')
  return {
    state = state, usd = tonumber(usd), tokens = tonumber(tokens), requests = tonumber(requests), rows = rows, meta = meta,
  }
end

-- spread: the counters and limit names of a reservation's rows.
local function spread(reservation)
  if reservation.fields then return end
  local fields, limits, n = {}, {}, 0
  for field, limit in string.gmatch(reservation.rows, '(%S+) (%S+)') do
    n = n + 1
    fields[n], limits[n] = field, limit
  end
  reservation.fields, reservation.limits = fields, limits
end

local function pack_reservation(reservation)
  return string.format('%s %d %d %d %s\n%s', reservation.state, reservation.usd, reservation.tokens, reservation.requests,
    reservation.rows, reservation.meta)
end

local function keep_reservation(context, id, reservation, until_ms)
  redis.call('HSET', context.reservations, id, pack_reservation(reservation))
  redis.call('ZADD', context.due, whole(until_ms), id)
end

-- gate_stands: false if it was shut for want of money, and what is needed is there again or a new window has begun.
-- A gate of ours is `budget|scope|window|unit|needed|left|limit|resumes_ms|field|limit name`; the field holds a bar itself.
local function gate_stands(context, gate)
  local part = split(gate, '|')
  local needed, resumes_ms = tonumber(part[5]), tonumber(part[8])
  if part[1] ~= 'budget' or #part ~= 11 or not needed or not resumes_ms then return true end -- guard: gate_of_money
  local unit, field, name = part[4], part[9] .. '|' .. part[10], part[11]
  local limit, counter = limit_of(context, name), counters_of(context, { field })[1]
  local at = unit == 'usd' and 1 or unit == 'tokens' and 2 or 3
  local most = limit and tonumber(limit[FIRST_LIMIT[string.sub(field, 1, 1)] + at - 1])
  local over = resumes_ms > 0 and resumes_ms <= context.now_ms
  return not over and most and counter[2 * at - 1] + counter[2 * at] + needed > most
end

-- open_gates: an agent that stood still for want of money goes on when what it needs is there again.
local function open_gates(context)
  local gates = redis.call('HGETALL', context.gates)
  for i = 1, #gates, 2 do
    if not gate_stands(context, gates[i + 1]) then redis.call('HDEL', context.gates, gates[i]) end
  end
end

-- alerts_of: thresholds that a scope's dollars have reached and nobody was told of yet. Remembers them in the counter.
local function alerts_of(context, reservation, counters)
  local told = {}
  for i, field in ipairs(reservation.fields) do
    local limit = limit_of(context, reservation.limits[i])
    local most = limit and tonumber(limit[FIRST_LIMIT[string.sub(field, 1, 1)]])
    if most and most > 0 then
      if not limit.thresholds then limit.thresholds = split(limit[11], ' ') end
      local level = 0
      for n, threshold in ipairs(limit.thresholds) do
        if counters[i][1] >= most * (tonumber(threshold) or math.huge) then level = n end
      end
      if level > counters[i][7] then -- guard: alert_once
        counters[i][7] = level
        told[#told + 1] = field
        told[#told + 1] = limit.thresholds[level]
        told[#told + 1] = whole(counters[i][1])
        told[#told + 1] = whole(most)
      end
    end
  end
  return told
end

-- book: what a call cost leaves the hold and enters the account, once, in the windows in which it was reserved.
-- `held` says whether the reservation's amounts are still held. Returns the alerts that this raised.
-- What is booked in the name of somebody who is gone raises none, for nobody would hear them: who settles next is told.
local function book(context, id, reservation, kind, usd, tokens, requests, held, more)
  spread(reservation)
  local counters = counters_of(context, reservation.fields)
  for _, counter in ipairs(counters) do
    counter[1], counter[3], counter[5] = counter[1] + usd, counter[3] + tokens, counter[5] + requests
    if held then
      counter[2], counter[4] = counter[2] - reservation.usd, counter[4] - reservation.tokens
      counter[6] = counter[6] - reservation.requests
    end
  end
  local told = {}
  if kind ~= 'unknown' then told = alerts_of(context, reservation, counters) end -- guard: alert_heard
  touch(context, reservation.fields)
  redis.call('XADD', context.ledger, '*', 'at', whole(context.now_ms), 'id', id, 'kind', kind, 'usd', whole(usd),
    'tokens', whole(tokens), 'requests', whole(requests), 'reserved', whole(reservation.usd),
    'rows', reservation.rows, 'meta', reservation.meta, 'more', more, 'alerts', table.concat(told, ' '))
  context.freed = true
  return told
end

local function unhold(context, reservation)
  spread(reservation)
  for _, counter in ipairs(counters_of(context, reservation.fields)) do
    counter[2], counter[4] = counter[2] - reservation.usd, counter[4] - reservation.tokens
    counter[6] = counter[6] - reservation.requests
  end
  touch(context, reservation.fields)
  context.freed = true
end

-- expire: what holders left behind. Not sent: the hold is freed. Sent: nobody knows what it cost, so it is settled at the
-- estimate, and corrected if the usage turns up within a day. Ended long ago: forgotten.
local UNKNOWN_MS = 86400000
local function expire(context, most)
  local ids = redis.call('ZRANGEBYSCORE', context.due, '-inf', context.now_ms, 'LIMIT', 0, most)
  local freed, unknown = 0, 0
  for _, id in ipairs(ids) do
    local reservation = read_reservation(redis.call('HGET', context.reservations, id))
    if reservation and reservation.state == 'open' then
      unhold(context, reservation)
      reservation.state = 'released'
      keep_reservation(context, id, reservation, context.now_ms + UNKNOWN_MS)
      freed = freed + 1
    elseif reservation and reservation.state == 'sent' then -- guard: expire_sent
      book(context, id, reservation, 'unknown', reservation.usd, reservation.tokens, reservation.requests, true, '')
      reservation.state = 'unknown'
      keep_reservation(context, id, reservation, context.now_ms + UNKNOWN_MS)
      unknown = unknown + 1
    else
      redis.call('HDEL', context.reservations, id)
      redis.call('ZREM', context.due, id)
    end
  end
  return freed, unknown, #ids
end

-- money: what a call works on. It ends with `finish`.
local function money(keys)
  local now_us, now_ms = read_clock(keys[1])
  return {
    limits = keys[2], spend = keys[3], reservations = keys[4], due = keys[5], ledger = keys[6], gates = keys[7],
    now_us = now_us, now_ms = now_ms, keys = keys, limit = {}, counter = {}, touched = {}, freed = false,
  }
end

local function finish_money(context)
  if context.freed then open_gates(context) end -- guard: gates_opened
  write_counters(context)
end
