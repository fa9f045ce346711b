-- holds: what an admission has taken for a while, kept in the aux set until settled or expired.
--
-- A member is <permit>:<amount> or <permit>:<amount>:<tag>, its score the moment it expires. On
-- load the expired ones are set aside in memory; they leave the store with the next write.
-- @include numbers
-- @include cells
--
-- DEFINES load_holds(cell, last)  fills cell.held_count, cell.expired (by `last`, if that is before
--                                now) and cell.expired_amount; false where the aux key holds
--                                another type
-- DEFINES hold_parts(member)     amount and tag of a member
-- DEFINES hold_member(id, amount, tag)
-- DEFINES each_hold(cell, visit)  visit(member, score) for live holds, the first to expire first,
--                                until it returns true
-- DEFINES wait_for_holds(cell, amount)  microseconds until holds of `amount` have expired, or nil
-- DEFINES renew_hold(cell, member)  the new end of a lease, nil where it has ended
local function hold_parts(member)
  local amount, tag = member:match('^[^:]*:(%d+):?(%d*)$')
  return tonumber(amount) or 0, tonumber(tag)
end

local function hold_member(id, amount, tag)
  local member = id .. ':' .. text(amount)
  return tag and (member .. ':' .. text(tag)) or member
end

local function load_holds(cell, last)
  local count = cell.cleared and 0 or redis.pcall('ZCARD', cell.aux)
  if type(count) ~= 'number' then
    return false
  end
  local until_us = math.min(cell.now, last or cell.now)
  cell.held_count, cell.expired, cell.expired_amount = count, {}, 0
  if count > 0 then
    cell.expired = redis.call('ZRANGEBYSCORE', cell.aux, '-inf', text(until_us))
    for _, member in ipairs(cell.expired) do
      cell.expired_amount = cell.expired_amount + hold_parts(member)
    end
    cell.held_count = count - #cell.expired
    cell.reaped = until_us
  end
  return true
end

local function each_hold(cell, visit)
  local pending = {}
  for member, score in pairs(cell.adds) do
    pending[#pending + 1] = { member, score }
  end
  table.sort(pending, function(a, b) return a[2] < b[2] end)
  local first, size, taken = 0, 100, 1
  while not cell.cleared do
    local page = redis.call('ZRANGEBYSCORE', cell.aux, '(' .. text(cell.now), '+inf', 'WITHSCORES',
                            'LIMIT', text(first), text(size))
    for i = 1, #page, 2 do
      local member, score = page[i], tonumber(page[i + 1])
      while pending[taken] and pending[taken][2] <= score do
        if visit(pending[taken][1], pending[taken][2]) then
          return
        end
        taken = taken + 1
      end
      if not cell.drops[member] and not cell.adds[member] and visit(member, score) then
        return
      end
    end
    if #page < 2 * size then
      break
    end
    first, size = first + size, 2 * size
  end
  for i = taken, #pending do
    if visit(pending[i][1], pending[i][2]) then
      return
    end
  end
end

local function wait_for_holds(cell, amount)
  local freed, wait = 0, nil
  each_hold(cell, function(member, score)
    freed = freed + hold_parts(member)
    wait = freed >= amount and score - cell.now or nil
    return wait
  end)
  return wait
end

local function renew_hold(cell, member)
  local ends = member_score(cell, member)
  if cell.corrupt or not ends or ends <= cell.now then
    return nil
  end
  ends = math.max(ends, cell.now + cell.spec.lease)
  add_member(cell, ends, member)
  return ends
end
