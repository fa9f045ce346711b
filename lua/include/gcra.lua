-- gcra: the generic cell rate algorithm, in exact rational arithmetic.
--
-- The state is one moment, `tat` + `frac`/den microseconds: when the bucket will be full again.
-- One cell takes num/den microseconds to earn, where num/den is per/limit reduced. Amounts of
-- time below are in units of 1/den microseconds, so that no admission loses a fraction; exact
-- while burst * num stays below 2^53.
--
-- A refund gives back no more than the part of the charge that time has not given back already, or
-- refunded cells would come on top of a full burst. Time gives back the oldest cells first, so what
-- is left of a charge is what is left up to the `tat` that it set. Refunds since then may have been
-- of cells ahead of it or behind; they count as ahead, as far as there was anything ahead.
-- @include numbers
-- @include cells
-- @include change
-- @include verdicts
-- @include settled
--
-- SPEC    limit, per (us), burst, on_change
-- FIELDS  tat  frac  rev (changes of the declaration)  refunded (us given back so far)
--         refunded_frac  born
-- HOLDS   tat  frac  refunded  refunded_frac  rev  ahead (what the bucket lacked before)  born
local function make_gcra()
  local gcra = {}
  -- A hundred years: no debt goes further, or the moment would not fit a whole number.
  local LONGEST_US = 36525 * 86400 * 1000000

  local function steps(spec)
    if not spec.num then
      local common = gcd(spec.per, spec.limit)
      spec.num, spec.den = spec.per / common, spec.limit / common
    end
    return spec.num, spec.den
  end

  local function level(cell)
    return math.max(0, (cell.tat - cell.now) * cell.spec.den + cell.frac)
  end

  local function set_level(cell, units)
    local den = cell.spec.den
    local ahead = math.floor(units / den)
    local frac = math.floor(units - ahead * den)
    if ahead > LONGEST_US then
      ahead, frac = LONGEST_US, 0
    end
    cell.tat, cell.frac, cell.dirty = cell.now + ahead, frac, true
  end

  function gcra.load(cell, was)
    local raw = cell.raw
    steps(cell.spec)
    if cell.absent then
      cell.tat, cell.frac, cell.rev, cell.born = cell.now, 0, 1, cell.now
      cell.refunded, cell.refunded_frac = 0, 0
      return true
    end
    cell.tat, cell.frac, cell.born = whole(raw.tat), whole(raw.frac), whole(raw.born)
    cell.rev = whole(raw.rev)
    cell.refunded, cell.refunded_frac = whole(raw.refunded), whole(raw.refunded_frac)
    if not (cell.tat and cell.frac and cell.rev and cell.refunded and cell.refunded_frac
            and cell.born) then
      return false
    end
    if was then
      local num, num_was, den_was = cell.spec.num, steps(was)
      local used = math.max(0, (cell.tat - cell.now) * den_was + cell.frac) * num / num_was
      local units = carried(cell.spec, used, was.burst * num, cell.spec.burst * num)
      local dirty = cell.dirty
      -- Rounded up, but not for what is only the error of a division.
      set_level(cell, math.ceil(units - 0.001))
      cell.rev, cell.refunded, cell.refunded_frac, cell.dirty = cell.rev + 1, 0, 0, dirty
    end
    return true
  end

  function gcra.save(cell)
    local full_in = math.max(0, cell.tat - cell.now)
    return {
      tat = text(cell.tat), frac = text(cell.frac),
      rev = text(cell.rev), refunded = text(cell.refunded),
      refunded_frac = text(cell.refunded_frac), born = text(cell.born),
    }, math.max(full_in, SETTLE_US), cell.marked_us
  end

  local function left(cell, units)
    local spec = cell.spec
    return math.max(0, math.floor((spec.burst * spec.num - units) / spec.num))
  end

  function gcra.decide(cell, cost)
    local spec = cell.spec
    local units = level(cell)
    local after = units + cost * spec.num
    local over = after - spec.burst * spec.num
    if cost > spec.burst then
      return refuses('cost_above_limit', spec.limit, left(cell, units), NEVER,
                     math.ceil(units / spec.den))
    elseif over > 0 then
      return refuses('limit_reached', spec.limit, left(cell, units), math.ceil(over / spec.den),
                     math.ceil(units / spec.den))
    end
    return admits(spec.limit, left(cell, after), math.ceil(after / spec.den))
  end

  function gcra.take(cell, cost)
    local units = level(cell)
    set_level(cell, units + cost * cell.spec.num)
    return { cell.tat, cell.frac, cell.refunded, cell.refunded_frac, cell.rev, units, cell.born }
  end

  -- Full again no sooner than the provider is, and nothing before it admits anything.
  function gcra.sync(cell, figures)
    local spec = cell.spec
    local units = level(cell)
    local full = spec.burst * spec.num
    if figures.remaining >= 0 then
      units = math.max(units, full - math.min(figures.remaining, spec.burst) * spec.num)
    end
    if figures.reset_us >= 0 then
      units = math.max(units, math.min(figures.reset_us * spec.den, full))
    end
    if figures.retry_us >= 0 then
      units = math.max(units, full - spec.num + figures.retry_us * spec.den)
    end
    if units > level(cell) then
      set_level(cell, units)
    end
  end

  function gcra.settle(cell, settlement)
    local spec = cell.spec
    local delta = settlement.actual - settlement.reserved
    local tat, frac, refunded, refunded_frac, rev, ahead, born = unpack(settlement.hold)
    if born ~= cell.born then
      return 'stale'
    elseif delta == 0 then
      return 'settled'
    end
    local mark_us = math.max(math.ceil(spec.burst * spec.num / spec.den), SETTLE_US)
    if not first_settlement(cell, settlement.id, mark_us) then
      return 'stale'
    end
    local units = level(cell)
    if delta > 0 then
      set_level(cell, units + delta * spec.num)
    elseif rev == cell.rev then
      local since = (cell.refunded - refunded) * spec.den + cell.refunded_frac - refunded_frac
      local unearned = (tat - cell.now) * spec.den + frac - math.min(since, ahead)
      local back = math.min(-delta * spec.num, math.max(0, unearned), units)
      set_level(cell, units - back)
      local total = cell.refunded_frac + back
      cell.refunded_frac = math.fmod(total, spec.den)
      cell.refunded = cell.refunded + (total - cell.refunded_frac) / spec.den
    end
    return 'settled'
  end

  return gcra
end
