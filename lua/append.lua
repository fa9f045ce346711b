-- append: add events to a stream, and trim what is too much or too old.
--
-- KEYS[1]  stream  a stream; every entry has one field, event
-- KEYS[2]  seen    sorted set of the ids of events that every process tells of, by milliseconds
-- ARGV[1]  keep    how many entries the stream is to keep, about; 0 for all
-- ARGV[2]  age_ms  how long entries are kept, about, and the stream after the last; 0 for ever
-- ARGV[3]  seen_ms how long an id is remembered
-- ARGV[4]  ...     pairs: the id of an event that every process tells of, or empty; the event
-- RETURNS  {nothing or the id of the entry, for each event}; nothing where it is there already
--
-- @include numbers
local stream, seen = KEYS[1], KEYS[2]
local keep, age_ms, seen_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
-- Of the server itself, as the ids of entries are, and not the one that tests may move.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local ids, told = {}, false
for place = 4, #ARGV, 2 do
  local id, event = ARGV[place], ARGV[place + 1]
  told = told or id ~= ''
  if id ~= '' and redis.call('ZADD', seen, 'NX', text(now_ms), id) == 0 then
    ids[#ids + 1] = ''
  elseif keep == '0' then
    ids[#ids + 1] = redis.call('XADD', stream, '*', 'event', event)
  else
    ids[#ids + 1] = redis.call('XADD', stream, 'MAXLEN', '~', keep, '*', 'event', event)
  end
end
if told then
  redis.call('ZREMRANGEBYSCORE', seen, '-inf', '(' .. text(now_ms - seen_ms))
  redis.call('PEXPIRE', seen, text(seen_ms))
end
if age_ms > 0 then
  redis.call('XTRIM', stream, 'MINID', '~', text(now_ms - age_ms))
  redis.call('PEXPIRE', stream, text(age_ms))
end
return ids
