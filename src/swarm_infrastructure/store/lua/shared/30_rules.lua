-- rule: the board's rules, read as they are needed and at most once per call. `rules` begins as { board = its key }.
--   step|FROM|TO        '1' where an agent may take an item from one status to another
--   at|SECTION|STATUS   what a claim turns this status into; '-' where items may stand but not be claimed
--   quarantine          the status of items that wore out
--   retry|SECTION       where failed items wait; '' where that is the status they were claimed from
--   keep|SECTION|STATUS milliseconds that finished items are kept; nil: for ever
--   limits|SECTION      max_attempts|max_crashes|cap|max_payload_bytes   (0: no limit)
local rule = {}

local function read_rule(rules, field)
  local value = rules[field]
  if value == nil then
    value = redis.call('HGET', rules.board, field)
    rules[field] = value
  end
  return value
end

local limits_in = memo(function(text)
  local attempts, crashes, cap, bytes = match(text, '^(%d+)|(%d+)|(%d+)|(%d+)$')
  return {
    attempts = tonumber(attempts) or 0, crashes = tonumber(crashes) or 0, cap = tonumber(cap) or 0, bytes = tonumber(bytes) or 0,
  }
end)

function rule.place(rules, section, status) return read_rule(rules, 'at|' .. section .. '|' .. status) end
function rule.step(rules, from, to) return read_rule(rules, 'step|' .. from .. '|' .. to) end
function rule.quarantine(rules) return read_rule(rules, 'quarantine') end
function rule.retry(rules, section) return read_rule(rules, 'retry|' .. section) or '' end
function rule.keep(rules, section, status) return tonumber(read_rule(rules, 'keep|' .. section .. '|' .. status) or nil) end
function rule.limits(rules, section) return limits_in(read_rule(rules, 'limits|' .. section) or '') end
