-- register: publish a function under its versioned name. A release that changes a contract publishes swarm_v2_… beside
-- these, so that old and new workers run together during an upgrade.
-- Flags: {} refuses when Redis is out of memory (growing); {'allow-oom'} still drains then; {'no-writes'} only reads.
local function register(name, callback, flags)
  redis.register_function{ function_name = 'swarm_v1_' .. name, callback = callback, flags = flags or {} }
end

-- whole: a whole number as text, exact up to 2^53. tostring() would print a token as 1.7952170319842e+15.
-- Formatting a number costs as much as all else that a call does to an item. So small ones are kept, and of the others only
-- the thousands are formatted: they are the same for many numbers of one call.
local small, lowest, thousands, high = {}, {}, nil, nil

local function whole(number)
  local text = small[number]
  if text then return text end
  if number < 1000 or number % 1 ~= 0 then
    text = string.format('%.0f', number)
    if number >= 0 and number % 1 == 0 then small[number] = text end
    return text
  end
  local above = math.floor(number / 1000)
  local below = number - above * 1000
  if above ~= thousands then thousands, high = above, string.format('%.0f', above) end
  if not lowest[below] then lowest[below] = string.format('%03d', below) end
  return high .. lowest[below]
end

local function plus(text, number)
  return whole(tonumber(text) + number)
end
