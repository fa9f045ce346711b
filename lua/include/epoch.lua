-- epoch: which life of the state this is, so that it is noticed when all of it is lost.
--
-- A server that comes back empty, was flushed, or whose place an empty replica takes, has no epoch,
-- or one that began since. By itself it looks like a first start; whoever knew the epoch before
-- tells the two apart, and notes it for all.
-- @include clock
-- @include numbers
--
-- FIELDS  id (the nonce of the call that began it)  born (us)  lost (us, when it was noticed that
--         all before it had been lost; 0 where nothing is known to have been, -1 where somebody
--         who must know has said so)  was (id of the epoch that was lost)  kept (us, from when its
--         TTL counts)  spread (how the namespace is spread over shards)
--
-- DEFINES find_epoch(key, known, nonce)  the epoch as it is to be from now on; `known` is the id
--         that the caller knew, empty where it knew none
-- DEFINES keep_epoch(key, epoch)  writes what has changed of it; writing may fail and says nothing,
--         since without an epoch the next one finds the same
local find_epoch, keep_epoch
do
  local DAY = 86400

  function find_epoch(key, known, nonce)
    local raw = redis.pcall('HMGET', key, 'id', 'born', 'lost', 'was', 'kept')
    local born, lost, kept = whole(raw[2]), whole(raw[3]), whole(raw[5])
    if not raw[1] or not born or not lost then
      -- What is there and cannot be read has been overwritten.
      local is_lost = known ~= '' or raw.err or raw[1]
      return { id = nonce, born = now_us, lost = is_lost and now_us or 0, was = known,
               new = true, changed = true }
    end
    local epoch = { id = raw[1], born = born, lost = lost, was = raw[4] or '' }
    if known ~= '' and known ~= epoch.id and lost == 0 then
      epoch.lost, epoch.was, epoch.changed = born, known, true
    end
    epoch.changed = epoch.changed or not kept or now_us - kept > DAY / 2 * 1000000
    return epoch
  end

  function keep_epoch(key, epoch)
    if epoch.new then
      redis.pcall('DEL', key)
    end
    redis.pcall('HSET', key, 'id', epoch.id, 'born', text(epoch.born), 'lost', text(epoch.lost),
                'was', epoch.was, 'kept', text(now_us))
    redis.pcall('PEXPIRE', key, text(400 * DAY * 1000))
  end
end
