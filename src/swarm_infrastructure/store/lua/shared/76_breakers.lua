-- A breaker is one backend as the whole fleet sees it, a field of the breakers hash: `state failures until_ms successes tickets`.
-- A backend that works leaves no field.
--   state     closed     calls pass; `failures` in a row are counted
--             open       no call passes before until_ms
--             half_open  probes pass, as many at once as there are tickets; `successes` of theirs are counted
--   tickets   `id:ends_ms id:ends_ms …`: of a half-open one who probes, and when he is believed to be dead; of a closed one whose
--             failures are counted, of an open one whose failure opened it: a repeated report changes nothing
-- Who passes a closed breaker has no ticket, and what he reports counts only as long as it is closed.
local BREAKER = '^(%l[%l_]+) (%d+) (%d+) (%d+) ?(.*)$'
local SLOW_PROBES = 20
local breakers = {}

function breakers.read(text)
  local state, failures, until_ms, successes, tickets = string.match(text or 'closed 0 0 0 ', BREAKER)
  local breaker = {
    state = state, failures = tonumber(failures), until_ms = tonumber(until_ms), successes = tonumber(successes), tickets = {},
  }
  for id, ends_ms in string.gmatch(tickets, '(%S+):(%d+)') do
    breaker.tickets[#breaker.tickets + 1] = { id = id, ends_ms = tonumber(ends_ms) }
  end
  return breaker
end

function breakers.pack(breaker)
  local tickets = {}
  for i, ticket in ipairs(breaker.tickets) do tickets[i] = ticket.id .. ':' .. whole(ticket.ends_ms) end
  return string.format('%s %d %.0f %d %s', breaker.state, breaker.failures, breaker.until_ms, breaker.successes,
    table.concat(tickets, ' '))
end

local function keep_breaker(key, name, breaker)
  if breaker.state == 'closed' and breaker.failures == 0 then
    redis.call('HDEL', key, name)
  else
    redis.call('HSET', key, name, breakers.pack(breaker))
  end
end

-- enter_breaker: how many ms a call has to wait, or nil and how it passes: '' or 'probe', and what is to be kept if it does.
local function enter_breaker(text, now_ms, id, probes, probe_ms)
  local breaker = breakers.read(text)
  if breaker.state == 'closed' then return nil, '' end
  if breaker.state == 'open' and breaker.until_ms > now_ms then return breaker.until_ms - now_ms end -- guard: breaker_open
  local alive, first_ms = 0, nil
  for _, ticket in ipairs(breaker.tickets) do
    if ticket.id == id then return nil, 'probe' end -- guard: breaker_repeat
    if ticket.ends_ms > now_ms then -- guard: breaker_ticket_ends
      alive = alive + 1
      if not first_ms or ticket.ends_ms < first_ms then first_ms = ticket.ends_ms end
    end
  end
  if alive >= probes then return first_ms - now_ms end -- guard: breaker_probes
  if breaker.state == 'open' then breaker.state, breaker.tickets = 'half_open', {} end
  -- a probe whose time is over may only be slow: what it reports still counts, as long as it is among the newest
  while #breaker.tickets >= probes + SLOW_PROBES do table.remove(breaker.tickets, 1) end
  breaker.tickets[#breaker.tickets + 1] = { id = id, ends_ms = now_ms + probe_ms }
  return nil, 'probe', breaker
end

-- enter_backend: may a call go out now, past the breaker and under the rate limit of its backend? Eight arguments from `at` on: rate
-- ('' for none), calls per window, tokens per window ('' without a limit), window_ms, tokens of this call, breaker ('' for none),
-- probes at once, probe_ms. Returns why not: {'open', ms} {'wait', ms}, and nothing is counted; or nil and how it passed: '' or 'probe'.
local function enter_backend(rates, breakers_key, now_ms, id, argv, at)
  local rate, breaker_name, pass, breaker, counted = argv[at], argv[at + 5], '', nil, nil
  if breaker_name ~= '' then
    local open_ms
    open_ms, pass, breaker = enter_breaker(redis.call('HGET', breakers_key, breaker_name), now_ms, id, tonumber(argv[at + 6]),
      tonumber(argv[at + 7]))
    if open_ms then return { 'open', whole(open_ms) } end -- guard: backend_open
  end
  if rate ~= '' then
    local wait_ms
    wait_ms, counted = turn(redis.call('HGET', rates, rate), now_ms, tonumber(argv[at + 1]), tonumber(argv[at + 2]),
      tonumber(argv[at + 4]), tonumber(argv[at + 3]))
    if wait_ms then return { 'wait', whole(wait_ms) } end -- guard: backend_turn
    redis.call('HSET', rates, rate, counted)
  end
  if breaker then keep_breaker(breakers_key, breaker_name, breaker) end
  return nil, pass
end

-- leave_breaker: a call that passed has ended: ok | failed | unknown (it says nothing of the backend). Returns what that did:
-- counted | opened | closed | late (its pass is not valid any more; nothing changed)
local function leave_breaker(key, name, now_ms, id, outcome, threshold, recovery_ms, successes)
  local text = redis.call('HGET', key, name)
  local breaker = breakers.read(text)
  local mine = nil
  for i, ticket in ipairs(breaker.tickets) do
    if ticket.id == id then mine = i end
  end
  if breaker.state == 'open' then return mine and 'opened' or 'late' end -- guard: breaker_late
  if breaker.state == 'half_open' and not mine then return 'late' end -- guard: breaker_late_probe
  if breaker.state == 'closed' and mine then return 'counted' end -- guard: breaker_counted
  if mine then table.remove(breaker.tickets, mine) end
  local word = 'counted'
  if outcome == 'failed' then
    breaker.failures = breaker.failures + 1
    if breaker.state == 'half_open' or breaker.failures >= threshold then -- guard: breaker_opens
      breaker.state, breaker.until_ms, breaker.successes, breaker.tickets = 'open', now_ms + recovery_ms, 0, {}
      word = 'opened'
    end
    breaker.tickets[#breaker.tickets + 1] = { id = id, ends_ms = 0 }
  elseif outcome == 'ok' then
    if breaker.state == 'half_open' then
      breaker.successes = breaker.successes + 1
      if breaker.successes >= successes then -- guard: breaker_closes
        breaker = breakers.read(nil)
        word = 'closed'
      end
    else
      if not text then return 'counted' end
      breaker = breakers.read(nil)
    end
  end
  keep_breaker(key, name, breaker)
  return word
end
