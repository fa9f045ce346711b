-- settled: marks that make a second settlement of one permit a no-op.
--
-- Only a settlement that changes something leaves a mark, so admission stays free of them.
-- @include numbers
-- @include cells
--
-- DEFINES first_settlement(cell, id, life_us)  true once per permit, for `life_us`
local function first_settlement(cell, id, life_us)
  if member_score(cell, id) or cell.corrupt then
    return false
  end
  add_member(cell, cell.now + life_us, id)
  cell.reaped = cell.now
  return true
end
