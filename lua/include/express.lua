-- express: the answer where all that is asked are token buckets as they usually are.
--
-- Usually a bucket exists and was declared as it is declared now, nobody waits for it, it has no
-- limit of its own, and the clock goes forward. All of that is seen in one read, and then nothing else of
-- the engine is needed, whose very making would take longer than the decision. Where anything is
-- unusual, nothing has been written, and the engine decides.
-- @include clock
-- @include gcra_rule
-- @include denied
--
-- ARGV[4..]  as admit
-- KEYS       as admit
local express_reply
do
  local buckets, changed = {}, {}

  local function open(key, spec_text, spec)
    local raw = redis.pcall('HMGET', key, 'v', 'spec', 'at', 'tat', 'frac', 'rev', 'refunded',
                            'refunded_frac', 'born', 'queue', 'override')
    if raw.err or not raw[1] or raw[10] or raw[11] then
      return nil
    end
    local at = whole(raw[3])
    local bucket = {
      key = key, raw = raw, spec = spec,
      tat = whole(raw[4]), frac = whole(raw[5]), rev = whole(raw[6]),
      refunded = whole(raw[7]), refunded_frac = whole(raw[8]), born = whole(raw[9]),
    }
    if raw[1] == '1' and raw[2] == spec_text and at and at <= now_us and bucket.tat and bucket.frac
       and bucket.rev and bucket.refunded and bucket.refunded_frac and bucket.born then
      return bucket
    end
    return nil
  end

  -- Every bucket of every question, or nil where one is unusual.
  local function open_all(questions)
    local specs, opened = {}, {}
    for q, ops in ipairs(questions) do
      local row = {}
      for i, op in ipairs(ops) do
        local key = KEYS[op[2]]
        local bucket = buckets[key]
        if not bucket then
          local spec = specs[op[1]] or cjson.decode(ARGV[5 + op[1]])
          specs[op[1]] = spec
          gcra_steps(spec)
          bucket = open(key, ARGV[5 + op[1]], spec)
          buckets[key] = bucket
        end
        if not bucket or bucket.spec ~= specs[op[1]] or op[7] then
          return nil
        end
        row[i] = bucket
      end
      opened[q] = row
    end
    return opened
  end

  local function has_overrides()
    local fields = {}
    for i = 4, #KEYS, 2 do
      local key = KEYS[i]
      fields[#fields + 1] = key:sub(key:find('}:', 1, true) + 2)
    end
    for _, value in ipairs(redis.pcall('HMGET', KEYS[1], unpack(fields))) do
      if value then
        return true
      end
    end
    return false
  end

  local function take(bucket, units, cost)
    local spec = bucket.spec
    bucket.tat, bucket.frac = gcra_moment(now_us, units + cost * spec.num, spec.den)
    if not bucket.changed then
      bucket.changed = true
      changed[#changed + 1] = bucket
    end
  end

  local function answer(ops, row, undoable)
    local lines, levels, admitted, kept = {}, {}, true, nil
    for i, op in ipairs(ops) do
      local bucket = row[i]
      local spec = bucket.spec
      local units = gcra_level(bucket.tat, bucket.frac, now_us, spec.den)
      local reason, remaining, wait_us, reset_us = gcra_answer(spec, units, op[3])
      lines[i], levels[i] = { reason, spec.limit, remaining, wait_us, reset_us, 0 }, units
      admitted = admitted and (reason == 'ok' or op[4] == 1)
    end
    if admitted and undoable then
      kept = {}
    end
    for i, op in ipairs(ops) do
      local bucket, line, units = row[i], lines[i], levels[i]
      if line[1] == 'ok' and admitted then
        local raw, before = bucket.raw, nil
        if kept then
          before = { at = bucket.changed and text(now_us) or raw[3],
                     tat = bucket.changed and text(bucket.tat) or raw[4],
                     frac = bucket.changed and text(bucket.frac) or raw[5] }
        end
        take(bucket, units, op[3])
        if kept then
          -- As include/undoing has it.
          local after = {
            v = raw[1], at = text(now_us), tat = text(bucket.tat), frac = text(bucket.frac),
            rev = raw[6], refunded = raw[7], refunded_frac = raw[8], born = raw[9],
          }
          local same = before.at == after.at and before.tat == after.tat
                       and before.frac == after.frac
          kept[i] = same and '' or cjson.encode({ before = before, after = after })
        end
        line[7], line[8], line[9] = bucket.tat, bucket.frac, bucket.refunded
        line[10], line[11], line[12] = bucket.refunded_frac, bucket.rev, units
        line[13] = bucket.born
      elseif line[1] == 'ok' then
        -- Nothing will be charged: whoever would have let it pass says what is left as it is.
        local _, remaining, _, reset_us = gcra_answer(bucket.spec, units, 0)
        line[3], line[5] = remaining, reset_us
      elseif kept then
        kept[i] = ''
      end
    end
    return { admitted and 1 or 0, lines, 0, kept and 0, kept }, admitted
  end

  local function save(bucket)
    redis.call('HSET', bucket.key, 'at', text(now_us), 'tat', text(bucket.tat),
               'frac', text(bucket.frac))
    -- A second of slack, as the engine gives.
    local ttl_us = math.max(bucket.tat - now_us, SETTLE_US) + 1000000
    redis.call('PEXPIRE', bucket.key, text(math.ceil(ttl_us / 1000)))
  end

  local asked = cjson.decode(ARGV[4])
  local questions, opened = asked[1], not has_overrides() and open_all(asked[1])
  if opened then
    local replies, refused = {}, {}
    for i, position in ipairs(asked[2]) do
      if type(position) == 'table' then
        replies = nil
        break
      end
      local q = math.abs(position)
      replies[i] = refused[q]
      if not replies[i] then
        local reply, admitted = answer(questions[q], opened[q], position < 0)
        refused = admitted and {} or refused
        refused[q] = not admitted and reply or nil
        replies[i] = reply
      end
    end
    if replies then
      for _, bucket in ipairs(changed) do
        save(bucket)
      end
      if asked[3] then
        note_denials(KEYS[3], asked, replies)
      end
      express_reply = { ARGV[1], now_us, call_seq, replies }
    end
  end
end
if express_reply then
  return express_reply
end
