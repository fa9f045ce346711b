-- restoring: an undo that leaves what is stored as the admission found it, to the byte.
--
-- That is so where a state is still as the admission left it, which says so in full: every write of
-- anybody else moves its time, or a number, or a member of the aux set. Any number of admissions
-- that followed each other are so undone from the last to the first, in whatever order they are
-- named. Where somebody else has written since, there is nothing to go back to, and the kind gives
-- back what was taken (settle in include/<kind>), which decides alike and leaves a mark. Two things
-- are not as before: a key that is still there keeps the life that the admission gave it, which is
-- what an index of subjects then says too (include/subjects); and whoever waits, or keeps a denial,
-- is told as after any refund.
--
-- That leaves no mark either, so an undo that has been done cannot be told forever from one that has
-- not. While nobody else has written, it can: the state is as the admission found it. And whatever
-- is held under a permit's name (leases, holds, tickets, entries of a log) is not there, whoever
-- has written since. A rate that only counts has no names. It relies on this: an undo is sent once,
-- by the process that asked, which sends nothing again when a reply is lost; and the permit was
-- handed to nobody, so nobody settles it. What is settled by others is never undone like this,
-- since only an undo brings this text, and leaves its mark as ever.
-- @include clock
-- @include numbers
-- @include denied
-- @include cells
--
-- TEXT  as in include/undoing
--
-- DEFINES restore_all(settlements, wake, denied)  restores whatever can be; a settlement that has
--         such texts has them fourth, one for each part, where false stands for none; those that
--         are used are true after it
-- DEFINES is_undone(key, kept)  whether a rate that only counts is as the admission found it, or as
--         it was even before: no time of a state's is earlier than that of anything in it
local function stored_fields(key)
  local flat, fields, count = redis.pcall('HGETALL', key), {}, 0
  for i = 1, flat.err and 0 or #flat, 2 do
    fields[flat[i]], count = flat[i + 1], count + 1
  end
  return fields, count
end

local function as_it_was_left(key, aux, permit, kept)
  local fields, count = stored_fields(key)
  for name, value in pairs(kept.after) do
    if fields[name] ~= value then
      return nil
    end
    count = count - 1
  end
  if count ~= (fields.spec and 1 or 0) + (fields.override and 1 or 0) then
    return nil
  end
  if kept.member then
    local size = redis.pcall('ZCARD', aux)
    if size ~= tonumber(kept.size) or not redis.call('ZSCORE', aux, kept.member) then
      return nil
    end
    local top = redis.call('ZREVRANGE', aux, '0', '1', 'WITHSCORES')
    local last = top[1] == kept.member and top[4] or top[2]
    if (tonumber(size > 1 and last or 0)) ~= tonumber(kept.last) then
      return nil
    end
  elseif redis.pcall('ZSCORE', aux, permit) then
    -- Given back before, which others may since have used up to the same numbers.
    return nil
  end
  return fields
end

local function put_back(key, aux, kept)
  local set, gone = {}, {}
  for name, value in pairs(kept.before or {}) do
    if value then
      set[#set + 1] = name
      set[#set + 1] = value
    else
      gone[#gone + 1] = name
    end
  end
  -- First what takes no memory: then nothing of this is refused where there is none left.
  if not kept.before then
    redis.call('DEL', key)
    if subjects.drop then
      subjects.drop(key)
    end
  else
    local left_ms = redis.call('PTTL', key)
    if left_ms > 0 then
      redis.call('PEXPIRE', key, text(left_ms))
    end
  end
  for i = 1, #(kept.lost or {}), 2 do
    redis.call('ZADD', aux, kept.lost[i + 1], kept.lost[i])
  end
  if kept.member then
    redis.call('ZREM', aux, kept.member, unpack(kept.came))
  end
  if #gone > 0 then
    redis.call('HDEL', key, unpack(gone))
  end
  if #set > 0 then
    redis.call('HSET', key, unpack(set))
  end
end

local function restore_all(settlements, wake, denied)
  local waiting = {}
  for _, settlement in ipairs(settlements) do
    for j, told in ipairs(settlement[4] or {}) do
      if told then
        local kept, key = cjson.decode(told), settlement[3][j][2]
        settlement[4][j] = kept
        waiting[#waiting + 1] = { settlement, j, kept, KEYS[key], KEYS[key + 1] }
      end
    end
  end
  repeat
    local left = {}
    for _, undo in ipairs(waiting) do
      local settlement, j, kept, key, aux = unpack(undo)
      local fields = as_it_was_left(key, aux, settlement[1], kept)
      if fields then
        put_back(key, aux, kept)
        settlement[4][j] = true
        if (whole(fields.queue) or 0) > now_us or denial_kept(denied, key) then
          redis.call('PUBLISH', wake, key)
        end
      else
        left[#left + 1] = undo
      end
    end
    local more = #left > 0 and #left < #waiting
    waiting = left
  until not more
end

local function is_undone(key, kept)
  if kept.member or not kept.before then
    return false
  end
  local fields = stored_fields(key)
  local at = whole(fields.at)
  if at and at < tonumber(kept.after.at) then
    return true
  end
  for name, value in pairs(kept.before) do
    if (fields[name] or false) ~= value then
      return false
    end
  end
  return true
end
