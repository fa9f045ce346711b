-- subjects: how many subjects of a policy may have state at a time, where it says how many.
--
-- Such a policy has an index under the hash tag: its subjects, by when their state ends. A member is
-- entered, or moved, with every write of a state, and goes when that is deleted; one whose time is up
-- counts no more, whether or not it has been taken out. A new subject is refused while there are as
-- many as may be, and nothing is written for it. One that has state never is: what is known of it
-- must not be lost for what others do.
-- The index says nothing of what has been used. If it is lost, it is made again of the subjects that
-- are asked about; what was made before the policy said how many is entered as it is written.
-- @include clock
-- @include numbers
-- @include cells
-- @include verdicts
--
-- SPEC  max_subjects
-- KEYS  the last ones, one for each such policy: stanchion:{<tag>}:subjects:<policy>
--
-- DEFINES subjects.keys          how many of KEYS are indexes
-- DEFINES subjects.refuse(cell, verdict)  the veto for a subject that would be one too many, else nil,
--         as for what its kind refuses for good, or until it is asked with another window
-- DEFINES subjects.note(cell, ttl_ms)  that a state has been written, with so long to live
-- DEFINES subjects.drop(key)     that a state has been deleted
-- DEFINES subjects.write()       writes down what was noted, at the end of the flush
do
  -- As many as can end between two writes of a busy policy, and few enough to hold up nobody.
  local MOST_REAPED = 100
  local indexes = {}
  subjects.keys = 0

  for i = #KEYS, 1, -1 do
    local policy = KEYS[i]:match('^[^{]*{[^}]*}:subjects:([^:]*)$')
    if not policy then
      break
    end
    indexes[policy] = { key = KEYS[i], noted = {}, fresh = {} }
    subjects.keys = subjects.keys + 1
  end

  local function index_of(key)
    local policy, subject = key:match('^[^{]*{[^}]*}:[^:]*:([^:]*):(.*)$')
    return indexes[policy], subject
  end

  -- How many there are, those included that this call makes.
  local function count(index)
    if not index.stored then
      index.stored = redis.call('ZCOUNT', index.key, '(' .. text(now_us), '+inf')
    end
    local total = index.stored
    for cell in pairs(index.fresh) do
      total = total + (cell.dirty and 1 or 0)
    end
    return total
  end

  -- Microseconds until there is room for one: until so many have ended that there are too many, and
  -- one more.
  local function room_in(index, over)
    local found = redis.call('ZRANGEBYSCORE', index.key, '(' .. text(now_us), '+inf', 'WITHSCORES',
                             'LIMIT', text(over), '1')
    local ends = tonumber(found[2])
    for cell in pairs(index.fresh) do
      if cell.dirty then
        local _, ttl_us = fields_of(cell)
        -- Made just now, and with the slack that the flush will give it.
        local its_end = now_us + math.ceil((ttl_us + 1000000) / 1000) * 1000
        ends = math.min(ends or its_end, its_end)
      end
    end
    return math.max(1, (ends or now_us) - now_us)
  end

  function subjects.refuse(cell, verdict)
    local reason = verdict and verdict.reason
    if reason == 'window_unknown' or reason == 'cost_above_limit' then
      return nil
    end
    local index, subject = index_of(cell.key)
    if not index or not cell.absent or next(cell.raw) or cell.dirty then
      return nil
    end
    local known = redis.pcall('ZSCORE', index.key, subject)
    if type(known) == 'table' then
      return refuses('state_corrupt', NEVER, NEVER, NEVER, NEVER)
    elseif known and tonumber(known) > now_us then
      return nil
    end
    index.fresh[cell] = true
    local most, total = cell.spec.max_subjects, count(index)
    if total < most then
      return nil
    end
    local wait_us = room_in(index, total - most)
    return refuses('too_many_subjects', most, 0, wait_us, wait_us)
  end

  function subjects.note(cell, ttl_ms)
    local index, subject = index_of(cell.key)
    if index then
      local noted = index.noted
      noted[#noted + 1] = text(now_us + ttl_ms * 1000)
      noted[#noted + 1] = subject
    end
  end

  function subjects.drop(key)
    local index, subject = index_of(key)
    if index then
      redis.pcall('ZREM', index.key, subject)
    end
  end

  -- States are written by now: an index that is no sorted set must not make it an error.
  local function put_down(index)
    for first = 1, #index.noted, 1000 do
      redis.pcall('ZADD', index.key,
                  unpack(index.noted, first, math.min(first + 999, #index.noted)))
    end
    local ended = redis.pcall('ZRANGEBYSCORE', index.key, '-inf', text(now_us),
                              'LIMIT', '0', text(MOST_REAPED))
    if #ended > 0 then
      redis.pcall('ZREM', index.key, unpack(ended))
    end
    local last = redis.pcall('ZREVRANGE', index.key, '0', '0', 'WITHSCORES')
    if last[2] then
      local left_ms = math.ceil((tonumber(last[2]) - now_us) / 1000)
      redis.pcall('PEXPIRE', index.key, text(math.max(0, left_ms) + 1000))
    end
  end

  function subjects.write()
    for _, index in pairs(indexes) do
      if #index.noted > 0 then
        put_down(index)
      end
    end
  end
end
