-- verdicts: the shape in which a kind answers.
--
-- DEFINES NEVER       wait that says that no wait will help
-- DEFINES admits(limit, remaining, reset_us)             a verdict that lets the event pass
-- DEFINES refuses(reason, limit, remaining, wait_us, reset_us)  one that does not
local NEVER = -1

local function admits(limit, remaining, reset_us)
  return { ok = true, reason = 'ok', limit = limit, remaining = remaining,
           wait_us = 0, reset_us = reset_us }
end

local function refuses(reason, limit, remaining, wait_us, reset_us)
  return { ok = false, reason = reason, limit = limit, remaining = remaining,
           wait_us = wait_us, reset_us = reset_us }
end
