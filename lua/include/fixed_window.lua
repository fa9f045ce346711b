-- fixed_window: a limit on the amount admitted between two multiples of `per`.
--
-- Across a boundary twice the limit can pass within `per`; that is the algorithm's stated bound.
-- @include makers
-- @include numbers
-- @include cells
-- @include change
-- @include verdicts
-- @include settled
--
-- SPEC    limit, per (us), on_change
-- FIELDS  start (us)  used  born
-- HOLDS   start of the window that was charged  born
function makers.fixed_window()
  local fixed_window = {}

  function fixed_window.load(cell, was)
    local spec = cell.spec
    local start = cell.now - math.fmod(cell.now, spec.per)
    cell.start, cell.used, cell.born = start, 0, cell.now
    if cell.absent then
      return true
    end
    local start_was, used = whole(cell.raw.start), whole(cell.raw.used)
    cell.born = whole(cell.raw.born)
    if not start_was or not used or not cell.born then
      return false
    end
    local per_was = was and was.per or spec.per
    if cell.now < start_was + per_was then
      cell.used = was and math.ceil(carried(spec, used, was.limit, spec.limit)) or used
    end
    return true
  end

  function fixed_window.save(cell)
    local ends_us = cell.start + cell.spec.per - cell.now
    return { start = text(cell.start), used = text(storable(cell.used)), born = text(cell.born) },
           math.max(ends_us, SETTLE_US), cell.marked_us
  end

  function fixed_window.decide(cell, cost)
    local limit = cell.spec.limit
    local left, ends_us = limit - cell.used, cell.start + cell.spec.per - cell.now
    local reset_us = cell.used > 0 and ends_us or 0
    if cost > limit then
      return refuses('cost_above_limit', limit, math.max(0, left), NEVER, reset_us)
    elseif cost > left then
      return refuses('limit_reached', limit, math.max(0, left), ends_us, reset_us)
    end
    return admits(limit, left - cost, (cell.used + cost) > 0 and ends_us or 0)
  end

  function fixed_window.take(cell, cost)
    cell.used, cell.dirty = cell.used + cost, true
    return { cell.start, cell.born }
  end

  function fixed_window.sync(cell, figures)
    local remaining = figures.retry_us > 0 and 0 or figures.remaining
    if remaining >= 0 and cell.spec.limit - cell.used > remaining then
      cell.used, cell.dirty = cell.spec.limit - remaining, true
    end
  end

  function fixed_window.settle(cell, settlement)
    local delta = settlement.actual - settlement.reserved
    if settlement.hold[2] ~= cell.born then
      return 'stale'
    elseif delta == 0 then
      return 'settled'
    end
    if not first_settlement(cell, settlement.id, math.max(SETTLE_US, 2 * cell.spec.per)) then
      return 'stale'
    end
    -- A refund belongs to the window that was charged; a debt is paid where it becomes known.
    if settlement.hold[1] == cell.start then
      cell.used = math.max(0, cell.used + delta)
    elseif delta > 0 then
      cell.used = cell.used + delta
    end
    cell.dirty = true
    return 'settled'
  end

  return fixed_window
end
