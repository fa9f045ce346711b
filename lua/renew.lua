-- renew: lengthen the leases of permits that are still held; a lease that has ended stays ended.
--
-- KEYS[1..] keys      two for each subject: its state, its aux set; then indexes, as for admit
-- ARGV[1]   nonce     echoed, so that a reply can be told to belong to this call
-- ARGV[2]   channel   not used; nothing is published
-- ARGV[3]   wake      not used; nothing is freed
-- ARGV[4]   permits   JSON: [[permit, [part, ...]], ...], part = [kind, key, reserved, hold...]
-- RETURNS   {nonce, now_us, call_seq, {{new end of the lease in us, 0 where lost, ...}, ...}}
--
-- @include clock
-- @include kinds
local nonce, channel, wake, permits_json = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local function renew(permit, part)
  local kind = kind_named(part[1])
  local cell = open_cell(kind, KEYS[part[2]], KEYS[part[2] + 1])
  if cell.corrupt then
    return 0
  elseif cell.absent or cell.spec.kind ~= part[1] then
    return kind.passing and now_us or 0
  end
  local hold = {}
  for i = 4, #part do
    hold[i - 3] = part[i]
  end
  return kind.renew(cell, permit, part[3], hold) or 0
end

local replies = {}
for i, permit in ipairs(cjson.decode(permits_json)) do
  local ends = {}
  for j, part in ipairs(permit[2]) do
    ends[j] = renew(permit[1], part)
  end
  replies[i] = ends
end
flush(channel, wake, nil, nil, true)
return { nonce, now_us, call_seq, replies }
