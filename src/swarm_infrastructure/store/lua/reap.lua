-- reap: take back leases and delays that ran out in some lanes; every claim does the same for its own.
-- KEYS     1 board  2 items  3 events  4 counts  5 held  6 errors   then per lane: line, timed, bell, quarantine
-- ARGV     1 most items to take back (1-500)
-- Returns  {leases that ended, due_ms of the next one or ''}   {'place', lane}: the board has no such lane to claim from
-- Event    lease_ended or quarantined
local function reap_lanes(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local lanes = read_lanes(keys, 7)
  local context = {
    now_ms = now_ms, rules = read_rules(keys[1]), items = keys[2], events = keys[3], counts = keys[4], held = keys[5], errors = keys[6],
  }
  for _, lane in ipairs(lanes) do
    if not claimable(context.rules, lane) then return { 'place', lane.name } end -- guard: reap_place
  end
  local ended = reap(context, lanes, tonumber(argv[1]))
  local due = ''
  for _, lane in ipairs(lanes) do
    local first = redis.call('ZRANGE', lane.timed, 0, 0, 'WITHSCORES')[2]
    if first and (due == '' or tonumber(first) < due) then due = tonumber(first) end
  end
  return { ended, due == '' and '' or whole(due) }
end
register('reap', reap_lanes, { 'allow-oom' })
