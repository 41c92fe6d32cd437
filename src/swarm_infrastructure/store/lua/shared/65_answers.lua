-- The answers of an item are a hash: what was paid for or done for it, so that no attempt pays or does it again.
--   STEP            the answer: JSON that Lua does not read; the first one stands
--   @at|STEP        `stage token at_us`: where in the item's life it came about; of a call that is not its holder's: `- - at_us`
--   @input|STAGE    the item's payload as it was when the first answer of that stage was recorded
--   @replay         the item whose copy this is: what is not on record is not done
-- A stage is `section/status/requires`: the lane that the item was claimed from.
local REPLAYED = '@replay'

local function keep_answer(answers, step, answer, ttl_ms, payloads, item, stage, token, now_us)
  if redis.call('HSETNX', answers, step, answer) == 1 then -- guard: answer_first
    local place = stage ~= '' and (stage .. ' ' .. token) or '- -'
    redis.call('HSET', answers, '@at|' .. step, place .. ' ' .. whole(now_us))
    local input = '@input|' .. stage
    if stage ~= '' and redis.call('HEXISTS', answers, input) == 0 then
      local payload = redis.call('HGET', payloads, item)
      if payload then redis.call('HSET', answers, input, payload) end
    end
  end
  redis.call('PEXPIRE', answers, ttl_ms)
end
