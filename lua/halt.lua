-- halt: stop what a glob of event types matches, for every worker at once, or let it go on.
--
-- KEYS[1]  halts    hash of what is halted, by its name; lives as long as one of them
-- ARGV[1]  nonce    echoed, so that a reply can be told to belong to this call
-- ARGV[2]  channel  where it is published that something has changed
-- ARGV[3]  name     which halt, empty for all of them
-- ARGV[4]  halt     JSON with on, by, who and why; empty to let go on
-- ARGV[5]  last_us  how long it lasts, 0 until it is let go on
-- RETURNS  {nonce, now_us, call_seq, {how many there were of the name before}}
--
-- @include clock
-- @include numbers
local halts_key = KEYS[1]
local nonce, channel, name, halt, last_us = ARGV[1], ARGV[2], ARGV[3], ARGV[4], whole(ARGV[5])

local function ending(stored)
  local readable, document = pcall(cjson.decode, stored)
  return readable and type(document) == 'table' and whole(document.until_us) or 0
end

local function live(stored)
  local ends = ending(stored)
  return ends == 0 or ends > now_us
end

local before, last, endless, kept = 0, 0, false, {}
local stored = redis.call('HGETALL', halts_key)
for index = 1, #stored, 2 do
  local named = name == '' or stored[index] == name
  if not live(stored[index + 1]) then
    redis.call('HDEL', halts_key, stored[index])
  elseif named then
    before = before + 1
    redis.call('HDEL', halts_key, stored[index])
  else
    kept[#kept + 1] = stored[index + 1]
  end
end
if halt ~= '' then
  local document = cjson.decode(halt)
  document.at_us = text(now_us)
  document.until_us = last_us == 0 and '0' or text(now_us + last_us)
  local written = cjson.encode(document)
  redis.call('HSET', halts_key, name, written)
  kept[#kept + 1] = written
end
for _, one in ipairs(kept) do
  local ends = ending(one)
  endless, last = endless or ends == 0, math.max(last, ends)
end
if endless then
  redis.call('PERSIST', halts_key)
elseif last > 0 then
  redis.call('PEXPIREAT', halts_key, text(math.floor(last / 1000) + 1))
end
redis.call('PUBLISH', channel, name)
return { nonce, now_us, call_seq, { before } }
