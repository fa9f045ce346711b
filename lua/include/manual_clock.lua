-- manual_clock: a time that a test sets, in place of include/clock; never used outside tests.
--
-- The time is kept under the fixed key stanchion:test:clock, in whole microseconds since the epoch.
--
-- DEFINES now_us    that time
-- DEFINES call_seq  0
local now_us, call_seq
do
  local set = redis.call('GET', 'stanchion:test:clock')
  now_us, call_seq = assert(tonumber(set or ''), 'no time is set in stanchion:test:clock'), 0
end
