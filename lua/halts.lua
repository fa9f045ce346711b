-- halts: what is halted; writes nothing.
--
-- KEYS[1]  halts  hash of what is halted, by its name
-- ARGV[1]  nonce  echoed, so that a reply can be told to belong to this call
-- RETURNS  {nonce, now_us, call_seq, {name, halt, name, halt, ...}}
--
-- @include clock
local halts_key, nonce = KEYS[1], ARGV[1]
return { nonce, now_us, call_seq, redis.call('HGETALL', halts_key) }
