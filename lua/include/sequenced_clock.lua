-- sequenced_clock: the server's time, and a number for each call; in place of include/clock, never
-- used outside tests.
--
-- The numbers are counted under the fixed key stanchion:test:sequence, also for mere reads.
--
-- DEFINES now_us    microseconds since the epoch
-- DEFINES call_seq  place of this call in the order of all calls, from 1
local now_us, call_seq
do
  local time = redis.call('TIME')
  now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
  call_seq = redis.call('INCR', 'stanchion:test:sequence')
  redis.call('PEXPIRE', 'stanchion:test:sequence', '3600000')
end
