-- gcra: a rate as a bucket that fills up again; the rule itself is in include/gcra_rule.
--
-- A refund gives back no more than the part of the charge that time has not given back already, or
-- refunded cells would come on top of a full burst. Time gives back the oldest cells first, so what
-- is left of a charge is what is left up to the `tat` that it set. Refunds since then may have been
-- of cells ahead of it or behind; they count as ahead, as far as there was anything ahead.
-- @include makers
-- @include gcra_rule
-- @include numbers
-- @include cells
-- @include change
-- @include verdicts
-- @include settled
--
-- SPEC    limit, per (us), burst (the limit where it is not there), on_change, lapse (us that what
--         was taken ahead may be spent after it was asked for, where it may be taken ahead)
-- FIELDS  tat  frac  rev (changes of the declaration)  refunded (us given back so far)
--         refunded_frac  born
-- HOLDS   tat  frac  refunded  refunded_frac  rev  ahead (what the bucket lacked before)  born
--
-- What is taken ahead is given back bit by bit. None of its cells then counts as lying behind those
-- that have been given back since, or all of them together could get back more than was left.
function makers.gcra()
  local gcra = {}
  local EVERYTHING = 4503599627370496

  local function level(cell)
    return gcra_level(cell.tat, cell.frac, cell.now, cell.spec.den)
  end

  local function set_level(cell, units)
    cell.tat, cell.frac = gcra_moment(cell.now, units, cell.spec.den)
    cell.dirty = true
  end

  function gcra.load(cell, was)
    local raw = cell.raw
    gcra_steps(cell.spec)
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
      local num, num_was, den_was = cell.spec.num, gcra_steps(was)
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

  function gcra.decide(cell, cost)
    local spec = cell.spec
    local reason, remaining, wait_us, reset_us = gcra_answer(spec, level(cell), cost)
    return { ok = reason == 'ok', reason = reason, limit = spec.limit, remaining = remaining,
             wait_us = wait_us, reset_us = reset_us }
  end

  function gcra.take(cell, cost, _, in_advance)
    local units = level(cell)
    set_level(cell, units + cost * cell.spec.num)
    return { cell.tat, cell.frac, cell.refunded, cell.refunded_frac, cell.rev,
             in_advance and EVERYTHING or units, cell.born },
           in_advance and now_us + cell.spec.lapse or nil
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
