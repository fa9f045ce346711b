-- settled: which admissions of a rate may still be settled, and which have been.
--
-- A state remembers when it was made (field born), and so does each admission: one that was made
-- before the state was reset, or ended, is stale. Only a settlement that changes something leaves
-- a mark, so admission stays free of them; an undo that puts back what was there leaves none either
-- (include/restoring). What nobody will ever settle twice needs no name, and
-- leaves none.
-- @include life
-- @include numbers
-- @include cells
--
-- DEFINES first_settlement(cell, id, life_us)  true once per permit, for `life_us`
local function first_settlement(cell, id, life_us)
  if id == '' then
    return true
  end
  local ends = member_score(cell, id)
  if cell.corrupt or (ends and ends > cell.now) then
    return false
  end
  -- Marks that were made under another declaration may be to live for longer.
  local last = redis.call('ZREVRANGE', cell.aux, '0', '0', 'WITHSCORES')
  add_member(cell, cell.now + life_us, id)
  cell.reaped = cell.now
  cell.marked_us = math.max(cell.marked_us or 0, life_us, (tonumber(last[2]) or 0) - cell.now)
  return true
end
