-- A global is searched for by its name each time it is used, a local is not: what every call uses often is one. While the
-- library is loaded there are no globals but a `redis` that can register functions: the first call fetches them.
local function read_globals()
  return redis, tonumber, unpack, ipairs, pairs, math.floor, string.match, string.find, string.byte, string.sub, table.concat
end

local loading = redis
local redis, tonumber, unpack, ipairs, pairs, floor, match, find, byte, substring, concat

-- register: publish a function under its versioned name. A release that changes a contract publishes swarm_v2_… beside
-- these, so that old and new workers run together during an upgrade.
-- Flags: {} refuses when Redis is out of memory (growing); {'allow-oom'} still drains then; {'no-writes'} only reads.
local function register(name, callback, flags)
  local function called(keys, argv)
    if not redis then
      redis, tonumber, unpack, ipairs, pairs, floor, match, find, byte, substring, concat = read_globals()
    end
    return callback(keys, argv)
  end
  loading.register_function{ function_name = 'swarm_v1_' .. name, callback = called, flags = flags or {} }
end

-- whole: a whole number as text, exact up to 2^53. tostring() would print a token as 1.7952170319842e+15.
-- Formatting a number costs as much as all else that a call does to an item. So it is put together from groups of three
-- digits, which are kept, and so is what stands before them where many numbers share it: a time's seconds, a line's thousands.
local small, groups, heads, many_heads = { [0] = '0' }, {}, {}, 0
local HEADS = 1000 -- so many are kept, then they begin anew

local function whole(number)
  local text = small[number]
  if text then return text end
  if number < 1000 or number % 1 ~= 0 or number > 2 ^ 53 then
    if number < 0 then return '-' .. whole(-number) end
    text = string.format('%.0f', number)
    if number < 1000 and number % 1 == 0 then small[number] = text end
    return text
  end
  local above = floor(number / 1000)
  local below = number - above * 1000
  local head = small[above] or heads[above]
  if not head then
    head = whole(above)
    if above < 1e10 then -- milliseconds and more are never the same for long
      if many_heads == HEADS then heads, many_heads = {}, 0 end
      heads[above], many_heads = head, many_heads + 1
    end
  end
  text = groups[below]
  if not text then
    text = string.format('%03d', below)
    groups[below] = text
  end
  return head .. text
end

local function plus(text, number)
  return whole(tonumber(text) + number)
end

-- memo: a pure function that remembers what it said of at most a thousand texts. Nobody changes what it gives.
local MEMO = 1000

local function memo(make)
  local known, many = {}, 0
  return function(text)
    local found = known[text]
    if found == nil then
      found = make(text)
      if many == MEMO then known, many = {}, 0 end
      known[text], many = found, many + 1
    end
    return found
  end
end
