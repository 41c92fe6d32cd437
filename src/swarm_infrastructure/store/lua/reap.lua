-- reap: take back leases and delays that ran out in some lanes; every claim does the same for its own.
-- KEYS     1 board  2 items  3 events  4 counts  5 held  6 errors  7 failures  8 escalations
--          then per lane: line, timed, bell, quarantine
-- ARGV     1 most items to take back (1-500)
-- Returns  {leases that ended, due_ms of the next one or ''}   {'place', lane}: the board has no such lane to claim from
-- Event    lease_ended or quarantined
local function reap_lanes(keys, argv)
  local lanes = read_lanes(keys, 9)
  local unfit, _, now_ms = read_claimables(keys[1], lanes)
  if unfit then return { 'place', unfit.parts.name } end -- guard: reap_place
  local context = {
    now_ms = now_ms, rules = { board = keys[1] }, items = keys[2], events = keys[3], counts = keys[4], held = keys[5],
    errors = keys[6], failures = keys[7], escalations = keys[8],
  }
  local ended, due_ms = reap(context, lanes, tonumber(argv[1]))
  return { ended, due_ms and whole(due_ms) or '' }
end
register('reap', reap_lanes, { 'allow-oom' })
