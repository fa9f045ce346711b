-- sliding_window: a limit on the amount counted over the last `per`, in slices.
-- @include numbers
-- @include cells
-- @include change
-- @include verdicts
-- @include settled
-- @include buckets
--
-- SPEC    limit, per (us), slices, on_change
-- FIELDS  b<index>  amount admitted in that slice
-- HOLDS   index of the slice that was charged
local sliding_window = {}
do
  local MARK_US = 3600 * 1000000

  function sliding_window.load(cell, was)
    local spec = cell.spec
    if was and (was.per ~= spec.per or was.slices ~= spec.slices) then
      -- Slices of another width: what was in the old window is carried as one amount, now.
      if not load_buckets(cell, math.ceil(was.per / was.slices), was.slices) then
        return false
      end
      local used = math.ceil(window_sum(cell) / cell.width)
      cell.width, cell.count = math.ceil(spec.per / spec.slices), spec.slices
      cell.buckets = { [bucket_of(cell)] = used }
    elseif not load_buckets(cell, math.ceil(spec.per / spec.slices), spec.slices) then
      return false
    end
    if was then
      local used = window_sum(cell) / cell.width
      local factor = used > 0 and carried(spec, used, was.limit, spec.limit) / used or 1
      for index, amount in pairs(cell.buckets) do
        cell.buckets[index] = math.ceil(amount * factor)
      end
    end
    return true
  end

  function sliding_window.save(cell)
    local fields = {}
    save_buckets(cell, fields)
    return fields, math.max(drain_us(cell), cell.marked_us or 0) + cell.width
  end

  local function left(cell, sum)
    return math.max(0, math.floor((cell.spec.limit * cell.width - sum) / cell.width))
  end

  function sliding_window.decide(cell, cost)
    local limit, sum = cell.spec.limit, window_sum(cell)
    if cost > limit then
      return refuses('cost_above_limit', limit, left(cell, sum), NEVER, drain_us(cell))
    elseif sum + cost * cell.width > limit * cell.width then
      return refuses('limit_reached', limit, left(cell, sum), wait_for_room(cell, limit - cost),
                     drain_us(cell))
    end
    local reset_us = drain_us(cell)
    if cost > 0 then
      reset_us = (bucket_of(cell) + cell.count + 1) * cell.width - cell.now
    end
    return admits(limit, left(cell, sum + cost * cell.width), reset_us)
  end

  function sliding_window.take(cell, cost)
    local index = bucket_of(cell)
    if cost > 0 then
      add_to_bucket(cell, index, cost)
    end
    return { index }
  end

  function sliding_window.sync(cell, figures)
    local remaining = figures.retry_us > 0 and 0 or figures.remaining
    if remaining >= 0 then
      local surplus = left(cell, window_sum(cell)) - remaining
      if surplus > 0 then
        add_to_bucket(cell, bucket_of(cell), surplus)
      end
    end
  end

  function sliding_window.settle(cell, settlement)
    local delta, index = settlement.actual - settlement.reserved, settlement.hold[1]
    if delta == 0 then
      return 'settled'
    end
    if not first_settlement(cell, settlement.id, math.max(MARK_US, 2 * cell.spec.per)) then
      return 'stale'
    end
    cell.marked_us = math.max(MARK_US, 2 * cell.spec.per)
    if index >= bucket_of(cell) - cell.count then
      add_to_bucket(cell, index, delta)
    elseif delta > 0 then
      add_to_bucket(cell, bucket_of(cell), delta)
    end
    return 'settled'
  end
end
