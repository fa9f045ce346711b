-- rolling: a quota over the last `per`, in slices, reserved on admission and settled later.
--
-- A slice counts what was charged in it, reservations included; a settlement corrects the slice
-- in which the amount was reserved, and changes nothing once that slice has left the window, or
-- slices of another width were declared.
-- @include makers
-- @include numbers
-- @include cells
-- @include change
-- @include verdicts
-- @include holds
-- @include buckets
-- @include thresholds
--
-- SPEC    limit, per (us), slices, lease (us), unsettled (charge|refund), overage (debt|clip),
--         warn_at, on_change
-- FIELDS  b<index> (amount charged in that slice)  cut (us, when slices of this width began)  seq
--         warned (thresholds reached now)
-- AUX     holds: member <permit>:<amount>:<index>, score the end of its lease
-- HOLDS   index of the slice that was charged  cut
function makers.rolling()
  -- What it holds goes with its window: nobody can take it from the holder before.
  local rolling = { passing = true }

  function rolling.load(cell, was)
    cell.seq = cell.absent and now_us or whole(cell.raw.seq)
    cell.warned = cell.absent and 0 or whole(cell.raw.warned)
    if not (load_holds(cell) and load_buckets(cell, was or cell.spec) and cell.seq
            and cell.warned) then
      return false
    end
    if cell.spec.unsettled == 'refund' then
      for _, member in ipairs(cell.expired) do
        local amount, index = hold_parts(member)
        if index and cell.buckets[index] then
          cell.buckets[index] = math.max(0, cell.buckets[index] - amount)
        end
      end
    end
    if was then
      local cut = cell.cut
      redeclare_buckets(cell, was)
      if cell.cut ~= cut then
        cell.adds, cell.drops, cell.cleared = {}, {}, true
      end
    end
    return true
  end

  function rolling.save(cell)
    local fields = { seq = text(cell.seq), warned = text(cell.warned) }
    save_buckets(cell, fields)
    return fields, math.max(drain_us(cell), cell.spec.lease) + cell.width
  end

  -- A share is told again only after the amount has fallen below it in between.
  local function warn_rising(cell)
    local used, reached = window_used(cell), 0
    for index, share in ipairs(cell.spec.warn_at) do
      if reaches(used, share, cell.spec.limit) then
        reached = index
        if index > cell.warned then
          cell.seq = cell.seq + 1
          emit(cell, {
            type = 'quota:threshold', seq = text(cell.seq),
            threshold = string.format('%.17g', share), used = text(used),
            limit = text(cell.spec.limit), window_end_us = text(cell.now + drain_us(cell)),
          })
        end
      end
    end
    cell.warned = reached
  end

  -- The window slides, and reservations come back unsettled: after each that does, what is left
  -- slides on, so the wait is over when the next one would come too late to help.
  local function wait_us(cell, cost)
    local room = cell.spec.limit - cost
    local slide, reached = wait_for_room(cell, room), 0
    if cell.spec.unsettled ~= 'refund' then
      return slide
    end
    local buckets = cell.buckets
    cell.buckets = {}
    for index, amount in pairs(buckets) do
      cell.buckets[index] = amount
    end
    each_hold(cell, function(member, score)
      if math.max(slide, reached) <= score - cell.now then
        return true
      end
      local amount, index = hold_parts(member)
      if index and cell.buckets[index] then
        cell.buckets[index] = math.max(0, cell.buckets[index] - amount)
        slide, reached = wait_for_room(cell, room), score - cell.now
      end
    end)
    cell.buckets = buckets
    return math.max(slide, reached)
  end

  function rolling.decide(cell, cost)
    local limit = cell.spec.limit
    local left = limit - window_used(cell)
    if cost > limit then
      return refuses('cost_above_limit', limit, math.max(0, left), NEVER, drain_us(cell))
    elseif cost > left then
      return refuses('quota_exhausted', limit, math.max(0, left), wait_us(cell, cost),
                     drain_us(cell))
    end
    return admits(limit, left - cost, cost > 0 and
                  (bucket_of(cell) + cell.count + 1) * cell.width - cell.now or drain_us(cell))
  end

  function rolling.take(cell, cost, id)
    local index = bucket_of(cell)
    add_to_bucket(cell, index, cost)
    add_member(cell, cell.now + cell.spec.lease, hold_member(id, cost, index))
    warn_rising(cell)
    return { index, cell.cut }, cell.now + cell.spec.lease
  end

  function rolling.sync(cell, figures)
    local surplus = cell.spec.limit - window_used(cell) - figures.remaining
    if figures.remaining >= 0 and surplus > 0 then
      add_to_bucket(cell, bucket_of(cell), surplus)
      warn_rising(cell)
    end
  end

  function rolling.settle(cell, settlement)
    local index = settlement.hold[1]
    local member = hold_member(settlement.id, settlement.reserved, index)
    local lease_ends = member_score(cell, member)
    if cell.corrupt or not lease_ends or lease_ends <= cell.now
       or settlement.hold[2] ~= cell.cut or not in_window(cell, index) then
      return 'stale'
    end
    drop_member(cell, member)
    local actual = settlement.actual
    if settlement.unknown and cell.spec.unsettled == 'refund' then
      actual = 0
    end
    if cell.spec.overage == 'clip' then
      local room = math.max(0, cell.spec.limit - window_used(cell))
      actual = math.min(actual, settlement.reserved + room)
    end
    add_to_bucket(cell, index, actual - settlement.reserved)
    warn_rising(cell)
    return 'settled'
  end

  function rolling.renew(cell, id, reserved, hold)
    if hold[2] ~= cell.cut or not in_window(cell, hold[1]) then
      return cell.now + cell.spec.lease
    end
    return renew_hold(cell, hold_member(id, reserved, hold[1]))
  end

  return rolling
end
