-- reset: forget what subjects have used; what they hold becomes stale.
--
-- KEYS[1]   circuits  circuits that have changed within a day, by time
-- KEYS[2..] keys     two for each subject: its state, its aux set; then the index, as for admit
-- ARGV[1]   nonce    echoed, so that a reply can be told to belong to this call
-- ARGV[2]   channel  where the change is published
-- ARGV[3]   wake     where those who wait are woken
-- RETURNS   {nonce, now_us, call_seq, {number of subjects that had state}}
--
-- @include clock
-- @include numbers
-- @include cells
-- @include subjects
local circuits_key, last_key = KEYS[1], #KEYS - subjects.keys
local nonce, channel, wake = ARGV[1], ARGV[2], ARGV[3]
local function forget(key, aux)
  local policy, subject = key:match('^[^{]*{[^}]*}:[^:]*:([^:]*):(.*)$')
  -- The aux set may outlive the state; by itself it is nothing that anybody could have used.
  redis.call('DEL', aux)
  if redis.call('DEL', key) == 0 then
    return 0
  end
  subjects.drop(key)
  -- State made later starts its sequence at its own time, so this one is always older.
  local event = { v = '1', key = key, policy = policy, subject = subject, seq = text(now_us),
                  at_us = text(now_us), generation = text(now_us), reason = 'reset',
                  type = 'policy:changed', change = 'reset', previous = '', state = '',
                  open_until_us = '0' }
  if key:find('}:circuit:', 1, true) then
    event.type, event.state = 'circuit:closed', 'closed'
    note_circuit(circuits_key, key, text(now_us))
  end
  redis.call('PUBLISH', channel, cjson.encode(event))
  redis.call('PUBLISH', wake, key)
  return 1
end
local count = 0
for i = 2, last_key, 2 do
  count = count + forget(KEYS[i], KEYS[i + 1])
end
return { nonce, now_us, call_seq, { count } }
