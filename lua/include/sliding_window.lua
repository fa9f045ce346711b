-- sliding_window: a limit on the amount counted over the last `per`, in slices.
-- @include makers
-- @include numbers
-- @include cells
-- @include change
-- @include verdicts
-- @include settled
-- @include buckets
--
-- SPEC    limit, per (us), slices, on_change
-- FIELDS  b<index> (amount admitted in that slice)  cut (us, when slices of this width began)
-- HOLDS   index of the slice that was charged  cut
function makers.sliding_window()
  local sliding_window = {}

  function sliding_window.load(cell, was)
    if not load_buckets(cell, was or cell.spec) then
      return false
    end
    if was then
      redeclare_buckets(cell, was)
    end
    return true
  end

  function sliding_window.save(cell)
    local fields = {}
    save_buckets(cell, fields)
    return fields, math.max(drain_us(cell), SETTLE_US), cell.marked_us
  end

  function sliding_window.decide(cell, cost)
    local limit = cell.spec.limit
    local left = limit - window_used(cell)
    if cost > limit then
      return refuses('cost_above_limit', limit, math.max(0, left), NEVER, drain_us(cell))
    elseif cost > left then
      return refuses('limit_reached', limit, math.max(0, left), wait_for_room(cell, limit - cost),
                     drain_us(cell))
    end
    local reset_us = drain_us(cell)
    if cost > 0 then
      reset_us = (bucket_of(cell) + cell.count + 1) * cell.width - cell.now
    end
    return admits(limit, left - cost, reset_us)
  end

  function sliding_window.take(cell, cost)
    local index = bucket_of(cell)
    add_to_bucket(cell, index, cost)
    return { index, cell.cut }
  end

  function sliding_window.sync(cell, figures)
    local remaining = figures.retry_us > 0 and 0 or figures.remaining
    if remaining >= 0 then
      local surplus = cell.spec.limit - window_used(cell) - remaining
      if surplus > 0 then
        add_to_bucket(cell, bucket_of(cell), surplus)
      end
    end
  end

  function sliding_window.settle(cell, settlement)
    local delta, index = settlement.actual - settlement.reserved, settlement.hold[1]
    if settlement.hold[2] ~= cell.cut then
      return 'stale'
    elseif delta == 0 then
      return 'settled'
    end
    if not first_settlement(cell, settlement.id, math.max(SETTLE_US, 2 * cell.spec.per)) then
      return 'stale'
    end
    if in_window(cell, index) then
      add_to_bucket(cell, index, delta)
    elseif delta > 0 then
      add_to_bucket(cell, bucket_of(cell), delta)
    end
    return 'settled'
  end

  return sliding_window
end
