-- denied: of which subjects some process keeps a denial, so that it is told when that may end.
--
-- The set is no policy's state: without it a denial is kept until it ends by itself. Whoever frees
-- something looks here whether anybody wants to know.
-- @include clock
-- @include numbers
--
-- DEFINES note_denials(denied_key, asked, replies)  what has just been denied, where the caller
--         keeps denials: asked[3] says for how long at most (us)
-- DEFINES denial_kept(denied_key, key)  whether anybody keeps a denial of a subject
local function note_denials(denied_key, asked, replies)
  local keep_us, noted = asked[3], {}
  local lasting = { limit_reached = true, quota_exhausted = true, circuit_open = true,
                    forced_open = true }
  for i, reply in ipairs(replies) do
    local request = asked[2][i]
    local waits = type(request) == 'table' and request[4]
    local ops = asked[1][math.abs(type(request) == 'table' and request[1] or request)]
    for j, line in ipairs(reply[1] == 0 and not waits and reply[2] or {}) do
      if lasting[line[1]] and ops[j][4] ~= 1 then
        local wait_us = line[4] < 0 and keep_us or math.min(line[4], keep_us)
        noted[#noted + 1] = text(now_us + wait_us)
        noted[#noted + 1] = KEYS[ops[j][2]]
      end
    end
  end
  if #noted > 0 then
    -- Whether this can be written changes no answer.
    redis.pcall('ZADD', denied_key, 'GT', unpack(noted))
    redis.pcall('ZREMRANGEBYSCORE', denied_key, '-inf', text(now_us))
    -- Of more than 100,000 those go that end first: a process that is not told keeps a denial too
    -- long by what is left of it, and of these the least is left.
    redis.pcall('ZREMRANGEBYRANK', denied_key, '0', '-100001')
    redis.pcall('PEXPIRE', denied_key, text(math.ceil(keep_us / 500)))
  end
end

local function denial_kept(denied_key, key)
  local ends = redis.pcall('ZSCORE', denied_key, key)
  return type(ends) == 'string' and tonumber(ends) > now_us
end
