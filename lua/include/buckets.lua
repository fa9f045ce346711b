-- buckets: amounts counted in equal slices of time, for windows that slide.
--
-- A window of `per` covers the slice that is filling, the whole slices before it, and of the
-- oldest slice the share that has not yet left. Amounts are assumed to be spread evenly within
-- one slice, so the count is exact to one slice of the window.
-- Amounts below are multiplied by the slice's width, which keeps the share whole.
-- @include numbers
-- @include change
--
-- DEFINES load_buckets(cell, spec)     reads fields b<index> and cut; false on garbage
-- DEFINES redeclare_buckets(cell, was)  carries what is in the window over into cell.spec
-- DEFINES save_buckets(cell, fields)   writes them back, without those that have left
-- DEFINES window_sum(cell)             amount in the window now, times width
-- DEFINES window_used(cell)            the same in units, rounded up; costs and limits are whole,
--                                      so a cost fits if and only if it fits on top of that
-- DEFINES wait_for_room(cell, room)    microseconds until at most `room` is in the window
-- DEFINES drain_us(cell)               microseconds until nothing is in the window
-- DEFINES bucket_of(cell)              index of the slice that is filling
-- DEFINES in_window(cell, index)       whether that slice is in the window, at least in part
-- DEFINES add_to_bucket(cell, index, amount)
local function bucket_of(cell)
  return math.floor(cell.now / cell.width)
end

local function in_window(cell, index)
  local current = bucket_of(cell)
  return index <= current and index >= current - cell.count
end

local function load_buckets(cell, spec)
  cell.width, cell.count, cell.buckets = math.ceil(spec.per / spec.slices), spec.slices, {}
  cell.cut = cell.now
  if cell.absent then
    return true
  end
  cell.cut = whole(cell.raw.cut)
  if not cell.cut then
    return false
  end
  for name, value in pairs(cell.raw) do
    local index = name:match('^b(%d+)$')
    if index then
      local amount = whole(value)
      if not amount then
        return false
      end
      cell.buckets[tonumber(index)] = amount
    end
  end
  return true
end

local function save_buckets(cell, fields)
  local oldest = bucket_of(cell) - cell.count
  fields.cut = text(cell.cut)
  for index, amount in pairs(cell.buckets) do
    if index >= oldest and amount > 0 then
      fields['b' .. text(index)] = text(storable(amount))
    end
  end
end

-- Amounts of the slices that are wholly in the window; and what the one that is leaving still
-- counts, times width.
local function parts_of_window(cell)
  local current = bucket_of(cell)
  local oldest, entire, total = current - cell.count, 0, 0
  for index, amount in pairs(cell.buckets) do
    if index > oldest then
      entire = entire + amount
    elseif index == oldest then
      total = total + amount * (cell.width - (cell.now - current * cell.width))
    end
  end
  return entire, total
end

local function window_sum(cell)
  local entire, leaving = parts_of_window(cell)
  return entire * cell.width + leaving
end

local function window_used(cell)
  local entire, leaving = parts_of_window(cell)
  local rest = math.fmod(leaving, cell.width)
  return entire + (leaving - rest) / cell.width + (rest > 0 and 1 or 0)
end

local function redeclare_buckets(cell, was)
  local spec = cell.spec
  if was.per ~= spec.per or was.slices ~= spec.slices then
    -- Slices of another width: what was in the old window is carried as one amount, now.
    local used = window_used(cell)
    cell.width, cell.count = math.ceil(spec.per / spec.slices), spec.slices
    cell.cut, cell.buckets = cell.now, { [bucket_of(cell)] = used }
  end
  local sum = window_sum(cell)
  local used = carried(spec, sum, was.limit * cell.width, spec.limit * cell.width)
  if used ~= sum then
    for index, amount in pairs(cell.buckets) do
      cell.buckets[index] = math.ceil(amount * used / sum)
    end
  end
end

local function wait_for_room(cell, room)
  local width, current = cell.width, bucket_of(cell)
  local rest = 0
  for index, amount in pairs(cell.buckets) do
    if index >= current - cell.count then
      rest = rest + amount
    end
  end
  -- Slices leave one after the other; the one that leaves at step k shrinks by its amount each
  -- microsecond, from all of it at the step's start to nothing at its end.
  for step = current, current + cell.count do
    local leaving = cell.buckets[step - cell.count] or 0
    rest = rest - leaving
    if rest <= room then
      local into = 0
      if leaving > 0 then
        into = math.max(0, math.ceil(width - (room - rest) * width / leaving))
      end
      return math.max(0, step * width + into - cell.now)
    end
  end
  return math.max(0, (current + cell.count + 1) * width - cell.now)
end

local function drain_us(cell)
  local newest = -1
  for index, amount in pairs(cell.buckets) do
    if amount > 0 then
      newest = math.max(newest, index)
    end
  end
  return math.max(0, newest < 0 and 0 or (newest + cell.count + 1) * cell.width - cell.now)
end

local function add_to_bucket(cell, index, amount)
  cell.buckets[index] = math.max(0, (cell.buckets[index] or 0) + amount)
  cell.dirty = true
end
