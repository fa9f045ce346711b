-- clock: the server's time, read once a call.
--
-- DEFINES now_us    microseconds since the epoch
-- DEFINES call_seq  place of this call in the order of all calls; 0 outside tests
local now_us, call_seq
do
  local time = redis.call('TIME')
  now_us, call_seq = tonumber(time[1]) * 1000000 + tonumber(time[2]), 0
end
