-- tell: messages go to whoever listens now, each with its number in its channel, so that a listener sees what it missed; the
-- newest of each type are kept. Also when Redis is out of memory: what it keeps is bounded, and an emergency must get through.
-- KEYS     1 bus  2 numbers  3 types  then histories
-- ARGV     per message: Redis channel, message, type, key of the type's history (4 = first; '' for none), how many that keeps
-- Returns  per message how many connections it was pushed to (of this node, in a cluster)
local HISTORY_MS = 7 * 86400000 -- after the last message of a type

local function tell(keys, argv)
  local heard = {}
  for at = 1, #argv, 5 do
    local channel, message, history = argv[at], argv[at + 1], argv[at + 3]
    local number = redis.call('HINCRBY', keys[2], channel, 1)
    if history ~= '' then
      redis.call('SADD', keys[3], argv[at + 2])
      redis.call('XADD', keys[tonumber(history)], 'MAXLEN', argv[at + 4], '*', 'm', message) -- guard: tell_history
      redis.call('PEXPIRE', keys[tonumber(history)], HISTORY_MS)
    end
    heard[#heard + 1] = redis.call('PUBLISH', channel, number .. ' ' .. message)
  end
  return heard
end
register('tell', tell, { 'allow-oom' })
