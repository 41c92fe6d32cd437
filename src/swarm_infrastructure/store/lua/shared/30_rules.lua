-- read_rules: the board's rules, read as they are needed and at most once per call.
--   step|FROM|TO        '1' where an agent may take an item from one status to another
--   at|SECTION|STATUS   what a claim turns this status into; '-' where items may stand but not be claimed
--   quarantine          the status of items that wore out
--   retry|SECTION       where failed items wait; '' where that is the status they were claimed from
--   keep|SECTION|STATUS milliseconds that finished items are kept; nil: for ever
--   limits|SECTION      max_attempts|max_crashes|cap|max_payload_bytes   (0: no limit)
local function read_rules(board)
  local known = {}
  local function rule(field)
    local value = known[field]
    if value == nil then
      value = redis.call('HGET', board, field)
      known[field] = value
    end
    return value
  end
  local limits = {}
  local rules = {}

  function rules.place(section, status) return rule('at|' .. section .. '|' .. status) end
  function rules.step(from, to) return rule('step|' .. from .. '|' .. to) end
  function rules.quarantine() return rule('quarantine') end
  function rules.retry(section) return rule('retry|' .. section) or '' end
  function rules.keep(section, status) return tonumber(rule('keep|' .. section .. '|' .. status) or nil) end
  function rules.limits(section)
    local found = limits[section]
    if not found then
      local attempts, crashes, cap, bytes = string.match(rule('limits|' .. section) or '', '^(%d+)|(%d+)|(%d+)|(%d+)$')
      found = {
        attempts = tonumber(attempts) or 0, crashes = tonumber(crashes) or 0,
        cap = tonumber(cap) or 0, bytes = tonumber(bytes) or 0,
      }
      limits[section] = found
    end
    return found
  end
  return rules
end
