-- expire_reservations: end what dead holders left behind (see `expire`).
-- KEYS     1 board  2 limits  3 spend  4 reservations  5 reservations_due  6 ledger  7 gates
-- ARGV     1 most
-- Returns  {freed, settled at the estimate, looked at}
local function expire_reservations(keys, argv)
  local context = money(keys)
  local freed, unknown, n = expire(context, tonumber(argv[1]))
  finish_money(context)
  return { freed, unknown, n }
end
register('expire_reservations', expire_reservations, { 'allow-oom' })
