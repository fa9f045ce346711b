-- outcomes: what a breaker has seen lately, by time (slices) or by count (the last n calls).
-- @include numbers
--
-- FIELDS  w<index>  calls/failures/slow of one slice
--         ring      one letter a call, oldest first: s, f, S (slow success), F (slow failure)
--
-- DEFINES load_outcomes(cell)     false on garbage
-- DEFINES save_outcomes(cell, fields)
-- DEFINES forget_outcomes(cell)
-- DEFINES record_outcome(cell, failed, slow)
-- DEFINES tally(cell)             calls, failures and slow calls in the window
local SLICES = 10

local function slice_width(cell)
  return math.ceil(cell.spec.window / SLICES)
end

local function load_outcomes(cell)
  cell.slices, cell.ring = {}, cell.raw.ring or ''
  if cell.spec.calls then
    -- A window that was declared shorter has forgotten the calls before, for good.
    cell.ring = cell.ring:sub(-cell.spec.calls)
  end
  for name, value in pairs(cell.raw) do
    local index = name:match('^w(%d+)$')
    if index then
      local calls, failures, slow = value:match('^(%d+)/(%d+)/(%d+)$')
      if not calls then
        return false
      end
      cell.slices[tonumber(index)] = { tonumber(calls), tonumber(failures), tonumber(slow) }
    end
  end
  return true
end

local function save_outcomes(cell, fields)
  if cell.spec.calls then
    fields.ring = cell.ring ~= '' and cell.ring or nil
    return
  end
  local oldest = math.floor(cell.now / slice_width(cell)) - SLICES
  for index, seen in pairs(cell.slices) do
    if index > oldest then
      fields['w' .. text(index)] = string.format('%.0f/%.0f/%.0f', seen[1], seen[2], seen[3])
    end
  end
end

local function forget_outcomes(cell)
  cell.slices, cell.ring = {}, ''
end

local function record_outcome(cell, failed, slow)
  if cell.spec.calls then
    local letter = failed and 'f' or 's'
    cell.ring = (cell.ring .. (slow and letter:upper() or letter)):sub(-cell.spec.calls)
    return
  end
  local index = math.floor(cell.now / slice_width(cell))
  local seen = cell.slices[index] or { 0, 0, 0 }
  cell.slices[index] = { seen[1] + 1, seen[2] + (failed and 1 or 0), seen[3] + (slow and 1 or 0) }
end

local function tally(cell)
  if cell.spec.calls then
    local _, failures = cell.ring:gsub('[fF]', '')
    local _, slow = cell.ring:gsub('[SF]', '')
    return #cell.ring, failures, slow
  end
  local oldest = math.floor(cell.now / slice_width(cell)) - SLICES
  local calls, failures, slow = 0, 0, 0
  for index, seen in pairs(cell.slices) do
    if index > oldest then
      calls, failures, slow = calls + seen[1], failures + seen[2], slow + seen[3]
    end
  end
  return calls, failures, slow
end
