-- gcra: the generic cell rate algorithm, in exact rational arithmetic.
--
-- The state is one moment, `tat` + `frac`/den microseconds: when the bucket will be full again.
-- One cell takes num/den microseconds to earn, where num/den is per/limit reduced. Amounts of
-- time below are in units of 1/den microseconds, so that no admission loses a fraction; exact
-- while burst * num stays below 2^53.
--
-- A refund gives back no more than the part of the charge that time has not given back already:
-- the bucket has not been full since the admission only while the `tat` that it set (less what
-- was refunded since) is still ahead. Else refunded cells would come on top of a full burst.
-- @include numbers
-- @include cells
-- @include change
-- @include verdicts
-- @include settled
--
-- SPEC    limit, per (us), burst, on_change
-- FIELDS  tat  frac  rev (changes of the declaration)  refunded (us given back so far)
-- HOLDS   tat  refunded  rev
local gcra = {}
do
  local MARK_US = 3600 * 1000000

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
    cell.tat, cell.frac, cell.dirty = cell.now + ahead, math.floor(units - ahead * den), true
  end

  function gcra.load(cell, was)
    local raw = cell.raw
    steps(cell.spec)
    if cell.absent then
      cell.tat, cell.frac, cell.rev, cell.refunded = cell.now, 0, 1, 0
      return true
    end
    cell.tat, cell.frac = whole(raw.tat), whole(raw.frac)
    cell.rev, cell.refunded = whole(raw.rev), whole(raw.refunded)
    if not (cell.tat and cell.frac and cell.rev and cell.refunded) then
      return false
    end
    if was then
      local num_was, den_was = steps(was)
      local used = math.max(0, (cell.tat - cell.now) * den_was + cell.frac) / num_was
      local units = carried(cell.spec, used, was.burst, cell.spec.burst) * cell.spec.num
      local dirty = cell.dirty
      set_level(cell, math.ceil(units))
      cell.rev, cell.dirty = cell.rev + 1, dirty
    end
    return true
  end

  function gcra.save(cell)
    local full_in = math.max(0, cell.tat - cell.now)
    return {
      tat = text(cell.tat), frac = text(cell.frac),
      rev = text(cell.rev), refunded = text(cell.refunded),
    }, math.max(full_in, cell.marked_us or 0) + 1000000
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
    if cost > 0 then
      set_level(cell, level(cell) + cost * cell.spec.num)
    end
    return { cell.tat, cell.refunded, cell.rev }
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
    local tat, refunded, rev = settlement.hold[1], settlement.hold[2], settlement.hold[3]
    if delta == 0 then
      return 'settled'
    end
    local mark_us = math.max(spec.burst * spec.num / spec.den, MARK_US)
    if not first_settlement(cell, settlement.id, mark_us) then
      return 'stale'
    end
    cell.marked_us = mark_us
    local units = level(cell)
    if delta > 0 then
      set_level(cell, units + delta * spec.num)
    elseif rev == cell.rev then
      local unearned = tat - (cell.refunded - refunded) - cell.now
      local back = math.min(-delta * spec.num, math.max(0, unearned) * spec.den, units)
      set_level(cell, units - back)
      cell.refunded = cell.refunded + math.ceil(back / spec.den)
    end
    return 'settled'
  end
end
