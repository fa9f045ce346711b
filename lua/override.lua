-- override: give one subject a limit of its own, or take it away; in force with the next decision.
--
-- KEYS[1]  overrides  hash of limits set for single subjects, permanent: it is configuration
-- KEYS[2]  state      the subject's state key
-- ARGV[1]  nonce      echoed, so that a reply can be told to belong to this call
-- ARGV[2]  channel    where the change is published
-- ARGV[3]  wake       where those who wait are woken
-- ARGV[4]  override   JSON with limit, and burst where that is to be another; empty to take it away
-- RETURNS  {nonce, now_us, call_seq, {what was there before, empty for nothing}}
--
-- @include clock
-- @include numbers
local overrides_key, state_key = KEYS[1], KEYS[2]
local nonce, channel, wake, override = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local field = state_key:match('}:(.*)$')
local before = redis.call('HGET', overrides_key, field) or ''
if override == '' then
  redis.call('HDEL', overrides_key, field)
else
  redis.call('HSET', overrides_key, field, override)
end
local policy, subject = state_key:match('^[^{]*{[^}]*}:[^:]*:([^:]*):(.*)$')
redis.call('PUBLISH', channel, cjson.encode({
  v = '1', type = 'policy:changed', key = overrides_key .. '#' .. field, policy = policy,
  subject = subject, seq = text(now_us), at_us = text(now_us), generation = text(now_us),
  change = override == '' and 'override_removed' or 'override', reason = 'override',
}))
redis.call('PUBLISH', wake, state_key)
return { nonce, now_us, call_seq, { before } }
