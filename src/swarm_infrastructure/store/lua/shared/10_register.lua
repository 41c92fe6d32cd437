-- register: publish a function under its versioned name. A release that changes a contract publishes swarm_v2_… beside
-- these, so that old and new workers run together during an upgrade.
-- Flags: {} refuses when Redis is out of memory (growing); {'allow-oom'} still drains then; {'no-writes'} only reads.
local function register(name, callback, flags)
  redis.register_function{ function_name = 'swarm_v1_' .. name, callback = callback, flags = flags or {} }
end

-- whole: a whole number as text, exact up to 2^53. tostring() would print a token as 1.7952170319842e+15.
-- Formatting a number costs as much as the rest of packing a record, and versions are small: those are kept.
local digits = {}
local function whole(number)
  local text = digits[number]
  if not text then
    text = string.format('%.0f', number)
    if number >= 0 and number < 1000 then digits[number] = text end
  end
  return text
end

local function plus(text, number)
  return whole(tonumber(text) + number)
end
