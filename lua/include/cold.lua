-- cold: how a subject begins of which there is no state, once all state has been lost.
--
-- Where a declaration says nothing else (SPEC cold), it begins as if nothing had been used. With
-- `spent` it begins as if its whole limit had been used at the moment of the loss, and with
-- `prorated`, which quotas know, as if it had been used evenly until then. Time gives back the rest
-- by each kind's own rules, so the state is the same whoever makes it, and whenever: nothing is
-- written for a subject of which nobody asks.
-- @include clock
-- @include numbers
-- @include cells
-- @include epoch
-- @include gcra_rule
--
-- DEFINES cold.look(epoch, nonce, writes)  finds out whether state was lost; epoch is [its position
--         in KEYS, the id that the caller knows or ""]
-- DEFINES cold.begin(cell)  begins a subject by its rule, in memory
do
  local spent, prorated = {}, {}

  function spent.gcra(cell, at)
    local spec = cell.spec
    local tat, frac = gcra_moment(at, spec.burst * spec.num, spec.den)
    if tat >= cell.now then
      cell.tat, cell.frac = tat, frac
    end
  end

  function spent.sliding_window(cell, at)
    cell.buckets[math.floor(at / cell.width)] = cell.spec.limit
  end

  function spent.sliding_log(cell, at)
    if at > cell.now - cell.spec.per then
      cell.adds['lost:' .. text(cell.spec.limit)] = at
      cell.used, cell.lost_at = cell.spec.limit, at
    end
  end

  function spent.fixed_window(cell, at)
    if at >= cell.start then
      cell.used = cell.spec.limit
    end
  end

  -- Which window it is becomes known with what is asked.
  function spent.quota(cell, at)
    cell.begin = function()
      cell.used = at >= cell.start and cell.spec.limit or 0
    end
  end

  function prorated.quota(cell, at)
    cell.begin = function()
      local whole_us = cell.ends - cell.start
      local part = cell.spec.limit * math.max(0, at - cell.start)
      local rest = math.fmod(part, whole_us)
      cell.used = (part - rest) / whole_us + (rest > 0 and 1 or 0)
    end
  end

  spent.rolling = spent.sliding_window

  function prorated.rolling(cell, at)
    local count, newest, before = cell.count, math.floor(at / cell.width), 0
    local rest = math.fmod(cell.spec.limit, count)
    for i = 1, count do
      -- What does not divide is spread too, the first unit of it over the newest slice.
      local extra = math.ceil(rest * i / count)
      cell.buckets[newest - i + 1] = (cell.spec.limit - rest) / count + extra - before
      before = extra
    end
  end

  function spent.slots(cell, at)
    local limit, ends = cell.spec.limit, at + cell.spec.lease
    if ends > cell.now then
      cell.adds['lost:' .. text(limit)] = ends
      cell.in_use, cell.extra, cell.till = limit, limit - 1, ends
    end
  end

  function cold.look(epoch, nonce, writes)
    local key = KEYS[epoch[1]]
    local found = find_epoch(key, epoch[2], nonce)
    if writes and found.changed then
      keep_epoch(key, found)
    end
    cold.lost_us = found.lost > 0 and found.lost or nil
  end

  function cold.begin(cell)
    local kind = cell.kind.name
    local begin = cell.spec.cold == 'prorated' and prorated[kind] or spent[kind]
    if begin then
      begin(cell, math.min(cold.lost_us, cell.now))
    end
  end
end
