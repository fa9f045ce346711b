-- sliding_log: an exact limit over the last `per`; one log entry a request, with its weight.
-- @include makers
-- @include numbers
-- @include cells
-- @include change
-- @include verdicts
--
-- SPEC    limit, per (us), on_change
-- FIELDS  used  sum of the weights in the log
-- AUX     log: member <permit>:<weight>, score the time of admission
-- HOLDS   time of admission
function makers.sliding_log()
  local sliding_log = {}
  local function weight_of(member)
    return tonumber(member:match(':(%d+)$')) or 0
  end

  function sliding_log.load(cell, was)
    local left_at = cell.now - cell.spec.per
    if cell.cleared then
      cell.used = 0
      return true
    end
    cell.used = cell.absent and 0 or whole(cell.raw.used)
    local expired = redis.pcall('ZRANGEBYSCORE', cell.aux, '-inf', text(left_at))
    if expired.err or not cell.used then
      return false
    end
    for _, member in ipairs(expired) do
      cell.used = cell.used - weight_of(member)
    end
    cell.reaped = left_at
    if was and cell.spec.on_change == 'reset' then
      cell.used, cell.cleared = 0, true
    end
    return true
  end

  function sliding_log.save(cell)
    return { used = text(cell.used) }, cell.spec.per
  end

  -- Microseconds until `amount` has left the window, oldest entry first. Mostly the first page is
  -- enough; each further one is twice as long, since the server counts up to where a page begins.
  local function wait_for(cell, amount)
    if cell.lost_at then
      -- Stored with the first entry that comes after it; until then it is all that there is.
      return cell.lost_at + cell.spec.per - cell.now
    end
    local freed, first, size = 0, 0, 100
    while not cell.cleared do
      local page = redis.call('ZRANGEBYSCORE', cell.aux, '(' .. text(cell.now - cell.spec.per),
                              '+inf', 'WITHSCORES', 'LIMIT', text(first), text(size))
      for i = 1, #page, 2 do
        if not cell.drops[page[i]] then
          freed = freed + weight_of(page[i])
        end
        if freed >= amount then
          return tonumber(page[i + 1]) + cell.spec.per - cell.now
        end
      end
      if #page < 2 * size then
        break
      end
      first, size = first + size, 2 * size
    end
    return cell.spec.per
  end

  local function drains_in(cell)
    if cell.used <= 0 then
      return 0
    end
    local newest, first = cell.now - cell.spec.per, 0
    for member, score in pairs(cell.adds) do
      newest = weight_of(member) > 0 and math.max(newest, score) or newest
    end
    while not cell.cleared do
      local page = redis.call('ZREVRANGE', cell.aux, text(first), text(first + 9), 'WITHSCORES')
      for i = 1, #page, 2 do
        if weight_of(page[i]) > 0 and not cell.drops[page[i]] then
          return math.max(newest, tonumber(page[i + 1])) + cell.spec.per - cell.now
        end
      end
      if #page < 20 then
        break
      end
      first = first + 10
    end
    return newest + cell.spec.per - cell.now
  end

  function sliding_log.decide(cell, cost)
    local limit = cell.spec.limit
    local left = limit - cell.used
    if cost > limit then
      return refuses('cost_above_limit', limit, math.max(0, left), NEVER, drains_in(cell))
    elseif cost > left then
      return refuses('limit_reached', limit, math.max(0, left), wait_for(cell, cost - left),
                     drains_in(cell))
    end
    return admits(limit, left - cost, cost > 0 and cell.spec.per or drains_in(cell))
  end

  function sliding_log.take(cell, cost, id)
    add_member(cell, cell.now, id .. ':' .. text(cost))
    cell.used = cell.used + cost
    return { cell.now }
  end

  function sliding_log.sync(cell, figures)
    local remaining = figures.retry_us > 0 and 0 or figures.remaining
    local surplus = cell.spec.limit - cell.used - remaining
    if remaining >= 0 and surplus > 0 then
      sliding_log.take(cell, surplus, 'provider-' .. text(cell.now))
    end
  end

  function sliding_log.settle(cell, settlement)
    -- Cut off where the sum would no longer be exact: entries that leave take off what they added.
    local others = cell.used - settlement.reserved
    local actual = math.min(settlement.actual, storable(settlement.actual + others) - others)
    local delta = actual - settlement.reserved
    local member = settlement.id .. ':' .. text(settlement.reserved)
    local at = member_score(cell, member)
    if cell.corrupt or not at or at <= cell.now - cell.spec.per then
      return 'stale'
    elseif delta == 0 then
      return 'settled'
    end
    drop_member(cell, member)
    cell.used = cell.used + delta
    if actual > 0 then
      -- Settled entries say so, so that the same permit finds none of its own to settle again.
      add_member(cell, at, settlement.id .. ':settled:' .. text(actual))
    end
    return 'settled'
  end

  return sliding_log
end
