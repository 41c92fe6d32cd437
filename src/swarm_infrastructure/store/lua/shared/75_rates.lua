-- A rate is a field of the rates hash: `began calls tokens until_ms`. Calls are counted by a window that its first call opens; before
-- until_ms nobody calls, for the provider asked to wait.
local RATE = '^(%d+) (%d+) (%d+) (%d+)$'

-- turn: how many ms a call has to wait under a rate limit that the whole fleet shares, or nil and the rate with it counted.
local function turn(text, now_ms, most_calls, most_tokens, asked, window_ms)
  local began, calls, tokens, until_ms = string.match(text or '0 0 0 0', RATE)
  began, calls, tokens, until_ms = tonumber(began), tonumber(calls), tonumber(tokens), tonumber(until_ms)
  if until_ms > now_ms then return until_ms - now_ms end -- guard: admit_wait
  if now_ms >= began + window_ms or now_ms < began then began, calls, tokens = now_ms, 0, 0 end
  local full = most_calls and calls + 1 > most_calls -- guard: admit_calls
  -- a call greater than the whole limit goes alone into an empty window, or it would wait for ever
  if most_tokens and calls > 0 and tokens + asked > most_tokens then full = true end -- guard: admit_tokens
  if full then return began + window_ms - now_ms end
  return nil, string.format('%.0f %.0f %.0f 0', began, calls + 1, tokens + asked)
end
