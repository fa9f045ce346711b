-- epoch: which life of the state this is, and whether what was before it has been lost.
--
-- KEYS[1]   epoch      of the subjects that share its hash tag
-- ARGV[1]   nonce      echoed, so that a reply can be told to belong to this call; id of an epoch
--           that this call begins
-- ARGV[2]   channel    not used; who learns of a loss learns of it here
-- ARGV[3]   wake       not used; nothing is freed
-- ARGV[4]   known      id of the epoch that the caller knows, empty where it knows none
-- ARGV[5]   act        greet: begin one where there is none; lose: say that what was before now has
--           been lost; restore: say that nothing has been lost after all
-- ARGV[6]   spread     how the caller spreads the namespace over shards, empty where it does not say
-- RETURNS   {nonce, now_us, call_seq, {id, born_us, lost_us (0 and -1 as in include/epoch), id of the
--           one that was lost, how whoever said so first spreads the namespace}}
--
-- @include clock
-- @include epoch
local epoch_key = KEYS[1]
local nonce, known, act, spread = ARGV[1], ARGV[4], ARGV[5], ARGV[6]
local epoch = find_epoch(epoch_key, known, nonce)
if act == 'lose' and not epoch.new then
  epoch = { id = nonce, born = now_us, was = epoch.id, new = true, changed = true }
end
if act == 'lose' then
  epoch.lost = now_us
elseif act == 'restore' then
  epoch.changed, epoch.lost = true, -1
end
if epoch.changed then
  keep_epoch(epoch_key, epoch)
end
local first = redis.pcall('HGET', epoch_key, 'spread')
if spread ~= '' and not first then
  redis.pcall('HSET', epoch_key, 'spread', spread)
  first = spread
end
first = type(first) == 'string' and first or ''
return { nonce, now_us, call_seq, { epoch.id, epoch.born, epoch.lost, epoch.was, first } }
