-- holds: what an admission has taken for a while, kept in the aux set until settled or expired.
--
-- A member is <permit>:<amount> or <permit>:<amount>:<tag>, its score the moment it expires. On
-- load the expired ones are set aside in memory; they leave the store with the next write.
-- @include numbers
-- @include cells
--
-- DEFINES load_holds(cell)       fills cell.held_count, cell.expired, cell.expired_amount;
--                                false where the aux key holds another type
-- DEFINES hold_parts(member)     amount and tag of a member
-- DEFINES hold_member(id, amount, tag)
-- DEFINES wait_for_holds(cell, amount)  microseconds until holds of `amount` have expired, or nil
local function hold_parts(member)
  local amount, tag = member:match('^[^:]*:(%d+):?(%d*)$')
  return tonumber(amount) or 0, tonumber(tag)
end

local function hold_member(id, amount, tag)
  local member = id .. ':' .. text(amount)
  return tag and (member .. ':' .. text(tag)) or member
end

local function load_holds(cell)
  local count = redis.pcall('ZCARD', cell.aux)
  if type(count) ~= 'number' then
    return false
  end
  cell.held_count, cell.expired, cell.expired_amount = count, {}, 0
  if count > 0 then
    cell.expired = redis.call('ZRANGEBYSCORE', cell.aux, '-inf', text(cell.now))
    for _, member in ipairs(cell.expired) do
      cell.expired_amount = cell.expired_amount + hold_parts(member)
    end
    cell.held_count = count - #cell.expired
    cell.reaped = cell.now
  end
  return true
end

local function wait_for_holds(cell, amount)
  local freed, pending = 0, {}
  for member, score in pairs(cell.adds) do
    pending[#pending + 1] = { score, (hold_parts(member)) }
  end
  table.sort(pending, function(a, b) return a[1] < b[1] end)
  local first, taken = 0, 1
  while true do
    local page = cell.cleared and {} or
      redis.call('ZRANGEBYSCORE', cell.aux, '(' .. text(cell.now), '+inf', 'WITHSCORES',
                 'LIMIT', text(first), '100')
    for i = 1, #page, 2 do
      local score = tonumber(page[i + 1])
      while pending[taken] and pending[taken][1] <= score do
        freed, taken = freed + pending[taken][2], taken + 1
        if freed >= amount then
          return pending[taken - 1][1] - cell.now
        end
      end
      if not cell.drops[page[i]] and not cell.adds[page[i]] then
        freed = freed + hold_parts(page[i])
      end
      if freed >= amount then
        return score - cell.now
      end
    end
    if #page < 200 then
      break
    end
    first = first + 100
  end
  for i = taken, #pending do
    freed = freed + pending[i][2]
    if freed >= amount then
      return pending[i][1] - cell.now
    end
  end
  return nil
end
