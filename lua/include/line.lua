-- line: who waits for a subject, first come, first served.
--
-- While anybody waits, the subject's state says until when the waiters are known to be alive
-- (field queue), so a request that does not wait need not look at the line. The line is two sorted
-- sets: order (waiter -> ticket) and alive (waiter -> end of its lease). A waiter that stops
-- renewing its place leaves no hole: it is passed over and taken out.
-- A place is {waiter, ticket or 0, lease in us}.
-- @include clock
-- @include numbers
-- @include cells
--
-- DEFINES line_of(cell, order_key, alive_key)  opens the line of a cell, once a call; nil, and the
--                                        cell corrupt, where its keys hold other types
-- DEFINES somebody_ahead(cell, place)    whether a live waiter comes before this place; without a
--                                        place, whether anybody waits at all
-- DEFINES stand_in_line(cell, place)     keep or take this place
-- DEFINES leave_line(cell, place)        give it up; wakes nobody where it had none
-- DEFINES next_ticket(cell)              one that is behind everybody
local function line_of(cell, order_key, alive_key)
  if not cell.line then
    local line = { order = order_key, alive = alive_key, gone = {}, come = {} }
    local ended = redis.pcall('ZRANGEBYSCORE', alive_key, '-inf', text(cell.now))
    if ended.err or type(redis.pcall('ZCARD', order_key)) ~= 'number' then
      cell.corrupt = true
      return nil
    end
    cell.line = line
    for _, waiter in ipairs(ended) do
      line.gone[waiter] = true
    end
  end
  return cell.line
end

-- Waiters in the order of their tickets, as far as `visit` wants them.
local function walk_line(line, visit)
  for waiter, ticket in pairs(line.come) do
    if visit(waiter, ticket) then
      return true
    end
  end
  local first = 0
  while true do
    local page = redis.call('ZRANGE', line.order, text(first), text(first + 49), 'WITHSCORES')
    for i = 1, #page, 2 do
      if not line.gone[page[i]] and not line.come[page[i]]
         and visit(page[i], tonumber(page[i + 1])) then
        return true
      end
    end
    if #page < 100 then
      return false
    end
    first = first + 50
  end
end

local function somebody_ahead(cell, place)
  if cell.queue_until <= cell.now then
    return false
  elseif not place or not cell.line then
    return true
  end
  local waiter, ticket = place[1], place[2]
  return walk_line(cell.line, function(other, number)
    return other ~= waiter and (ticket == 0 or number < ticket)
  end)
end

local function next_ticket(cell)
  local ticket = now_us
  for _, number in pairs(cell.line.come) do
    ticket = math.max(ticket, number + 1)
  end
  local last = redis.call('ZREVRANGE', cell.line.order, '0', '0', 'WITHSCORES')
  return math.max(ticket, (tonumber(last[2]) or 0) + 1)
end

local function stand_in_line(cell, place)
  local waiter, ticket, lease = place[1], place[2], place[3]
  cell.line.come[waiter], cell.line.gone[waiter] = ticket, nil
  cell.line.lease = math.max(cell.line.lease or 0, lease)
  cell.queue_until = math.max(cell.queue_until, cell.now + lease)
  cell.dirty = true
end

local function leave_line(cell, place)
  local waiter = place[1]
  local standing = place[2] ~= 0
    and (cell.line.come[waiter] or redis.call('ZSCORE', cell.line.order, waiter))
  if not standing then
    return
  end
  cell.line.come[waiter], cell.line.gone[waiter] = nil, true
  cell.dirty = true
  local others = walk_line(cell.line, function() return true end)
  if others then
    cell.freed = true
  else
    cell.queue_until = 0
  end
end
