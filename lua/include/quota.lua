-- quota: an amount per fixed or calendar window, reserved on admission, settled to the real cost.
--
-- What an admission reserves is held until it is settled or its lease ends; then spec.unsettled
-- says whether it stays charged or comes back. What is still held when the window ends counts as
-- used in it. A settlement belongs to the window in which the amount was reserved: once that window
-- is over, it changes nothing.
-- A limit that is lowered in the middle of a window makes no debt of what was used under it: debt
-- is what lies above the highest ceiling that the window has had.
-- Calendar windows come with the request as [start, end, start, end, ...], since Lua knows no
-- time zones; which of them applies is decided by the server's time.
-- @include makers
-- @include numbers
-- @include cells
-- @include change
-- @include verdicts
-- @include holds
-- @include thresholds
--
-- SPEC    limit, per (us, 0 for calendar windows), lease (us), unsettled (charge|refund),
--         overage (debt|clip), rollover (most that is carried on), warn_at (ascending shares),
--         on_change
-- FIELDS  start, end (us)  since (start as it was first declared)  used (settled)
--         held (reserved)  carry (rolled over from the window before)  seq
--         warned (thresholds told in this window)  most (highest ceiling of this window, where it
--         has been lowered since)
-- AUX     holds: member <permit>:<amount>, score the end of its lease
-- HOLDS   `since` of the window that was charged
function makers.quota()
  -- What it holds goes with its window: nobody can take it from the holder before.
  local quota = { passing = true }

  local HOUR_US = 3600 * 1000000
  local MEAN_US = { hour = HOUR_US, day = 24 * HOUR_US, week = 168 * HOUR_US,
                    month = 730.485 * HOUR_US, year = 8765.82 * HOUR_US }

  -- The window that holds `cell.now`, and how long the ones after it are.
  local function locate(cell, windows)
    local per = cell.spec.per
    if per > 0 then
      local start = cell.now - math.fmod(cell.now, per)
      return start, start + per
    end
    for i = 1, #(windows or {}), 2 do
      if windows[i] <= cell.now and cell.now < windows[i + 1] then
        return windows[i], windows[i + 1]
      end
    end
    return nil
  end

  local function ceiling(cell)
    return cell.spec.limit + cell.carry
  end

  local function owed_above(cell)
    return math.max(cell.most, ceiling(cell))
  end

  function quota.load(cell, was)
    local raw, spec = cell.raw, cell.spec
    cell.unseen, cell.most = cell.absent, 0
    if cell.absent then
      cell.used, cell.held, cell.carry, cell.warned, cell.seq = 0, 0, 0, 0, now_us
      return load_holds(cell)
    end
    cell.start, cell.ends, cell.since = whole(raw.start), whole(raw['end']), whole(raw.since)
    cell.used, cell.held, cell.carry = whole(raw.used), whole(raw.held), whole(raw.carry)
    cell.warned, cell.seq = whole(raw.warned), whole(raw.seq)
    cell.most = whole(raw.most or '0')
    if not (cell.start and cell.ends and cell.since and cell.used and cell.held and cell.carry
            and cell.warned and cell.seq and cell.most and load_holds(cell, cell.ends)) then
      return false
    end
    cell.held = math.max(0, cell.held - cell.expired_amount)
    if spec.unsettled == 'charge' then
      cell.used = cell.used + cell.expired_amount
    end
    if was and cell.now < cell.ends then
      local before, after = was.limit + cell.carry, ceiling(cell)
      cell.used = math.ceil(carried(spec, cell.used, before, after))
      cell.most = math.floor(carried(spec, math.max(cell.most, before), before, after))
    elseif was then
      cell.limit_was = was.limit
    end
    return true
  end

  function quota.save(cell)
    -- Two windows of slack, so that a roll-over still finds what the last window left; and those
    -- that it takes to save up the most that is carried on, or to work off a debt.
    local debt = cell.spec.overage == 'debt' and cell.used + cell.held - owed_above(cell) or 0
    local most = math.max(debt, cell.spec.rollover)
    local slack = 2 + math.min(1000, math.ceil(most / cell.spec.limit))
    return {
      start = text(cell.start), ['end'] = text(cell.ends), used = text(storable(cell.used)),
      held = text(cell.held), carry = text(cell.carry), warned = text(cell.warned),
      seq = text(cell.seq), since = text(cell.since),
      most = cell.most > ceiling(cell) and text(storable(cell.most)) or nil,
    }, math.max(0, cell.ends - cell.now) + slack * (cell.ends - cell.start)
  end

  -- What one window leaves to the next: unused amount up to the cap, and debt.
  local function successor(spec, used, limit, most)
    local carry = math.min(spec.rollover, math.max(0, limit - used))
    local debt = spec.overage == 'debt' and math.max(0, used - (most or limit)) or 0
    return carry, debt
  end

  -- The window as it is at cell.now, in memory; false where the request brought none that fits.
  local function advance(cell, windows)
    local start, ends = locate(cell, windows)
    if not start then
      return false
    end
    if cell.start == start and cell.ends == ends then
      return true
    end
    if not cell.start then
      cell.start, cell.ends, cell.since = start, ends, start
      if cell.begin then
        cell.begin()
      end
      return true
    end
    if cell.now < cell.ends then
      -- The window itself was declared anew: what was used in it stays used.
      cell.start, cell.ends = start, ends
      return true
    end
    local limit = (cell.limit_was or cell.spec.limit) + cell.carry
    local most = math.max(cell.most, limit)
    local carry, debt = successor(cell.spec, cell.used + cell.held, limit, most)
    -- Calendar windows differ a little in length, and so does any number of them from the mean.
    local mean = MEAN_US[cell.spec.unit] or ends - start
    local about = cell.spec.per > 0 and 0 or 0.5
    local skipped = math.max(0, math.floor((start - cell.ends) / mean + about))
    for _ = 1, math.min(skipped, 1000) do
      carry, debt = successor(cell.spec, debt, cell.spec.limit + carry)
    end
    cell.start, cell.ends, cell.since = start, ends, start
    cell.used, cell.held, cell.carry, cell.warned, cell.limit_was = debt, 0, carry, 0, nil
    cell.most = 0
    cell.adds, cell.drops, cell.cleared = {}, {}, true
    return true
  end

  -- What will count as used when the window ends, if nobody settles anything. Looking through the
  -- holds is spared where they make no difference to the next window.
  local function used_in_the_end(cell)
    local spec, used = cell.spec, cell.used + cell.held
    if spec.unsettled == 'charge' or spec.rollover == 0 and used <= owed_above(cell) then
      return used
    end
    each_hold(cell, function(member, score)
      if score > cell.ends then
        return true
      end
      used = used - hold_parts(member)
    end)
    return used
  end

  -- Microseconds until `cost` fits: when holds come back, or in the first window with room.
  local function wait_us(cell, cost, windows)
    local spec = cell.spec
    if spec.unsettled == 'refund' then
      local best = wait_for_holds(cell, cell.used + cell.held + cost - ceiling(cell))
      if best and cell.now + best < cell.ends then
        return best
      end
    end
    local carry, debt = successor(spec, used_in_the_end(cell), ceiling(cell), owed_above(cell))
    local start, index = cell.ends, 1
    for _ = 1, 1000 do
      if debt + cost <= spec.limit + carry then
        return start - cell.now
      end
      if spec.per > 0 then
        start = start + spec.per
      else
        while windows[index] and windows[index] <= start do
          index = index + 2
        end
        if not windows[index] then
          return start - cell.now
        end
        start = windows[index]
      end
      carry, debt = successor(spec, debt, spec.limit + carry)
    end
    return start - cell.now
  end

  function quota.decide(cell, cost, windows)
    if not advance(cell, windows) then
      return refuses('window_unknown', cell.spec.limit, 0, 0, 0)
    end
    local limit = ceiling(cell)
    local left = limit - cell.used - cell.held
    local reset_us = cell.ends - cell.now
    -- Nothing is saved up for a subject of which there is no state.
    if cost > cell.spec.limit + (cell.unseen and 0 or cell.spec.rollover) then
      return refuses('cost_above_limit', limit, math.max(0, left), NEVER, reset_us)
    elseif cost > left then
      return refuses('quota_exhausted', limit, math.max(0, left), wait_us(cell, cost, windows),
                     reset_us)
    end
    return admits(limit, left - cost, reset_us)
  end

  function quota.take(cell, cost, id)
    cell.held, cell.unseen = cell.held + cost, false
    add_member(cell, cell.now + cell.spec.lease, hold_member(id, cost))
    warn(cell, cell.used + cell.held, ceiling(cell), cell.ends)
    return { cell.since }, cell.now + cell.spec.lease
  end

  function quota.sync(cell, figures, windows)
    if not advance(cell, windows) then
      return 'window_unknown'
    end
    if figures.remaining >= 0 then
      local used = ceiling(cell) - cell.held - figures.remaining
      if used > cell.used then
        cell.used, cell.dirty = used, true
        warn(cell, cell.used + cell.held, ceiling(cell), cell.ends)
      end
    end
  end

  function quota.settle(cell, settlement)
    local member = hold_member(settlement.id, settlement.reserved)
    local lease_ends = member_score(cell, member)
    if cell.corrupt or cell.since ~= settlement.hold[1] or cell.now >= cell.ends
       or not lease_ends or lease_ends <= cell.now then
      return 'stale'
    end
    drop_member(cell, member)
    cell.held = math.max(0, cell.held - settlement.reserved)
    local actual = settlement.actual
    if settlement.unknown and cell.spec.unsettled == 'refund' then
      actual = 0
    end
    local room = math.max(settlement.reserved, ceiling(cell) - cell.used - cell.held)
    if cell.spec.overage == 'clip' then
      actual = math.min(actual, room)
    end
    cell.used = cell.used + actual
    warn(cell, cell.used + cell.held, ceiling(cell), cell.ends)
    return 'settled'
  end

  function quota.renew(cell, id, reserved, hold)
    if hold[1] ~= cell.since or cell.now >= cell.ends then
      return cell.now + cell.spec.lease
    end
    return renew_hold(cell, hold_member(id, reserved))
  end

  return quota
end
