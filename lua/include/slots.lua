-- slots: a cap on what is in progress at once, as leases that end by themselves.
-- @include makers
-- @include numbers
-- @include cells
-- @include verdicts
-- @include holds
--
-- SPEC    limit, lease (us)
-- FIELDS  extra  weight beyond one slot each of all leases in the aux set
--         until  latest end that any lease has had (us)
-- AUX     leases: member <permit>:<weight>, score the end of the lease
-- HOLDS   end of the lease
function makers.slots()
  local slots = {}
  function slots.load(cell)
    cell.extra = cell.absent and 0 or whole(cell.raw.extra)
    cell.till = cell.absent and cell.now or whole(cell.raw['until'])
    if not cell.extra or not cell.till or not load_holds(cell) then
      return false
    end
    -- Counted from the set itself, so that nothing can drift: one slot a member, and the rest.
    cell.extra = math.max(0, cell.extra - (cell.expired_amount - #cell.expired))
    if cell.held_count == 0 then
      cell.extra = 0
    end
    cell.in_use = cell.held_count + cell.extra
    return true
  end

  function slots.save(cell)
    return { extra = text(cell.extra), ['until'] = text(cell.till) },
           math.max(0, cell.till - cell.now)
  end

  local function drains_in(cell)
    if cell.in_use == 0 then
      return 0
    end
    local latest = 0
    for _, score in pairs(cell.adds) do
      latest = math.max(latest, score)
    end
    local last = redis.call('ZREVRANGE', cell.aux, '0', '0', 'WITHSCORES')
    return math.max(0, latest - cell.now, (tonumber(last[2]) or 0) - cell.now)
  end

  function slots.decide(cell, cost)
    local limit = cell.spec.limit
    local left = limit - cell.in_use
    if cost > limit then
      return refuses('cost_above_limit', limit, math.max(0, left), NEVER, drains_in(cell))
    elseif cost > left then
      return refuses('no_free_slot', limit, math.max(0, left),
                     wait_for_holds(cell, cost - left) or cell.spec.lease, drains_in(cell))
    end
    local reset_us = cell.spec.lease
    if cost == 0 or cell.till > cell.now + reset_us then
      reset_us = math.max(cost > 0 and reset_us or 0, drains_in(cell))
    end
    return admits(limit, left - cost, reset_us)
  end

  function slots.take(cell, cost, id)
    local ends = cell.now + cell.spec.lease
    if cost > 0 then
      add_member(cell, ends, hold_member(id, cost))
      cell.extra = cell.extra + cost - 1
      cell.in_use = cell.in_use + cost
      cell.till = math.max(cell.till, ends)
    end
    return { ends }, ends
  end

  function slots.settle(cell, settlement)
    local weight = settlement.reserved
    local member = hold_member(settlement.id, weight)
    local ends = weight > 0 and member_score(cell, member)
    if cell.corrupt or not ends or ends <= cell.now then
      return weight == 0 and 'settled' or 'stale'
    end
    drop_member(cell, member)
    cell.extra = math.max(0, cell.extra - (weight - 1))
    cell.in_use = cell.in_use - weight
    return 'settled'
  end

  function slots.renew(cell, id, weight)
    if weight == 0 then
      return cell.now + cell.spec.lease
    end
    local ends = renew_hold(cell, hold_member(id, weight))
    cell.till = math.max(cell.till, ends or 0)
    return ends
  end

  return slots
end
