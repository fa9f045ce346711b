-- settle: true up what admissions hold, once each; what is stale changes nothing and says so.
--
-- KEYS[1]   circuits     circuits that have changed within a day, by time
-- KEYS[2]   denied       subjects of which some process keeps a denial, by when it ends
-- KEYS[3..] keys         two for each subject: its state, its aux set; then indexes, as for admit
-- ARGV[1]   nonce        echoed, so that a reply can be told to belong to this call
-- ARGV[2]   channel      where state changes are published
-- ARGV[3]   wake         where those who wait are woken
-- ARGV[4]   worker       who reports; breakers may ask for several distinct ones
-- ARGV[5]   settlements  JSON: [[permit, outcome, [part, ...], texts], ...] where a part is
--                        [kind, key, reserved, actual, unknown 0|1, luck 0..999999, hold...]:
--                        `key` a position in KEYS, `actual` the real cost, `unknown` where
--                        nobody reported one; outcome success|failure|neutral|undo, and undo
--                        gives back as if the event had never been admitted; texts is there for
--                        an undo that has some: one for each part, false for none, as admit gave
--                        them, with which the store is as it was (include/restoring)
-- RETURNS   {nonce, now_us, call_seq, {{"settled"|"stale"|"state_corrupt", ...}, ...}}
--
-- @include clock
-- @include kinds
-- @include restoring
local circuits_key, denied_key = KEYS[1], KEYS[2]
local nonce, channel, wake, worker, settlements_json = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local function settle(permit, outcome, part, kept)
  if kept == true then
    return 'settled'
  elseif kept and is_undone(KEYS[part[2]], kept) then
    return 'stale'
  end
  local kind = kind_named(part[1])
  local cell = open_cell(kind, KEYS[part[2]], KEYS[part[2] + 1])
  if cell.corrupt then
    return 'state_corrupt'
  elseif cell.absent and part[3] == 0 and part[4] == 0 then
    return 'settled'
  elseif cell.absent or cell.spec.kind ~= part[1] then
    return 'stale'
  end
  local undo = outcome == 'undo'
  local hold = {}
  for i = 7, #part do
    hold[i - 6] = part[i]
  end
  local status = kind.settle(cell, {
    id = permit, outcome = outcome, undo = undo, reserved = part[3],
    actual = undo and 0 or part[4], unknown = part[5] == 1 and not undo, luck = part[6],
    hold = hold, worker = worker,
  })
  cell.freed = cell.freed or cell.dirty
  return cell.corrupt and 'state_corrupt' or status
end

local replies, settlements = {}, cjson.decode(settlements_json)
restore_all(settlements, wake, denied_key)
for i, settlement in ipairs(settlements) do
  local statuses, texts = {}, settlement[4] or {}
  for j, part in ipairs(settlement[3]) do
    statuses[j] = settle(settlement[1], settlement[2], part, texts[j])
  end
  replies[i] = statuses
end
flush(channel, wake, circuits_key, denied_key, true)
return { nonce, now_us, call_seq, replies }
