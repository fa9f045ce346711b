-- undoing: what an admission finds, kept by whoever asked, who may yet undo it.
--
-- What is asked after the limits may veto, and then they are to be as they were, to the byte. The
-- state cannot keep that itself: it would be larger for every admission, and for most in vain. So
-- the reply has it, as text that comes back with the undo (include/restoring) and means nothing to
-- anybody else. It never is in a permit: whoever has one settles it, and undoes nothing.
--
-- TEXT  JSON: before  fields that the admission changes, as they were, false where there were none;
--                     false where there was no state
--             after   every field but the declaration's, as this admission leaves them
--             member  what it enters into the aux set, if anything; and then
--             came    other members that come with it, since a state begins with them
--             size    how many members there are then
--             last    the highest score of any but its own, 0 where there is none
--             lost    what goes since it has ended: member, score, member, score, ...
--
-- Empty where an undo cannot, or need not, restore anything: nothing is written; the declaration
-- changes, which a refusal puts into force as well; something is told to others, such as that a
-- circuit is half open, which cannot be taken back; a line changes; or a great deal has ended.
-- @include numbers
-- @include cells
--
-- DEFINES as_it_is(cell)  what a cell would have stored, before something is taken; false where
--         nothing can be restored
-- DEFINES what_changed(before, cell)  that text, once it is taken
local MOST_LOST = 64

local function as_it_is(cell)
  if cell.corrupt or cell.redeclared or (cell.absent and next(cell.raw)) then
    return false
  end
  cell.newest = nil
  return { fields = cell.dirty and fields_of(cell) or cell.raw, dirty = cell.dirty,
           absent = cell.absent and not cell.dirty, told = cell.told }
end

-- How many members the store has that stay, and the highest of their scores.
local function members_that_stay(cell)
  if cell.cleared then
    return 0, 0
  end
  local count, gone_until = redis.call('ZCARD', cell.aux), cell.reaped or -1
  if count > 0 and cell.reaped then
    count = count - redis.call('ZCOUNT', cell.aux, '-inf', text(gone_until))
  end
  local last = redis.call('ZREVRANGE', cell.aux, '0', '0', 'WITHSCORES')
  last = tonumber(last[2]) or 0
  return count, last > gone_until and last or 0
end

local function members_that_go(cell)
  if cell.cleared then
    return redis.call('ZRANGE', cell.aux, '0', text(MOST_LOST), 'WITHSCORES')
  elseif cell.reaped then
    return redis.call('ZRANGEBYSCORE', cell.aux, '-inf', text(cell.reaped), 'WITHSCORES',
                      'LIMIT', '0', text(MOST_LOST + 1))
  end
  return {}
end

local function what_changed(before, cell)
  local line = cell.line
  if not cell.dirty or cell.told ~= before.told
     or line and (next(line.come) or next(line.gone)) then
    return ''
  end
  local kept = { before = {}, after = fields_of(cell), member = cell.newest }
  for name, value in pairs(kept.after) do
    if before.fields[name] ~= value then
      kept.before[name] = before.fields[name] or false
    end
  end
  for name, value in pairs(before.fields) do
    if kept.after[name] == nil then
      kept.before[name] = value
    end
  end
  kept.after.spec, kept.after.override = nil, nil
  if before.absent then
    kept.before = false
  end
  if kept.member then
    -- Nothing is written yet: what is stored is as the call found it, and what is pending is ours.
    local size, last = members_that_stay(cell)
    kept.came = {}
    for member, score in pairs(cell.adds) do
      size = size + 1
      if member ~= kept.member then
        last = math.max(last, score)
        kept.came[#kept.came + 1] = not before.dirty and member or nil
      end
    end
    kept.size, kept.last = text(size), text(last)
    kept.lost = before.dirty and {} or members_that_go(cell)
    for i = 2, #kept.lost, 2 do
      kept.lost[i] = text(tonumber(kept.lost[i]))
    end
  elseif kept.before and not next(kept.before) then
    return ''
  end
  local told = cjson.encode(kept)
  -- What others have written into a state need not be text.
  return (#(kept.lost or {}) > 2 * MOST_LOST or told:find('[\128-\255]')) and '' or told
end
