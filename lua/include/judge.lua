-- judge: pass 1 of an admission: read every policy's state and ask each whether it lets one pass.
-- @include cells
-- @include verdicts
-- @include kinds
-- @include line
--
-- OP      [spec, key, cost, shadow 0|1, luck 0..999999, windows, line]; spec and key are positions
--         in the request's list of declarations and in KEYS, where the aux key follows; windows
--         are empty where there are none; line is there for requests that wait, the position in
--         KEYS of the order key, which the alive key follows
--
-- DEFINES judge(ops, spec_texts, overrides, place)  verdicts in order, their cells, and whether all
--         that are enforced let it pass; for place see include/line
-- While the server's clock is behind what it was, time stands still for a cell; that comes on top.
local function in_server_time(cell, verdict)
  local behind = cell.now - now_us
  if behind > 0 then
    verdict.wait_us = verdict.wait_us > 0 and verdict.wait_us + behind or verdict.wait_us
    verdict.reset_us = verdict.reset_us > 0 and verdict.reset_us + behind or verdict.reset_us
  end
  return verdict
end

local function judge(ops, spec_texts, overrides, place)
  local verdicts, touched, admitted = {}, {}, true
  for i, op in ipairs(ops) do
    local spec_text, key, shadow = spec_texts[op[1]], KEYS[op[2]], op[4] == 1
    local override = overrides[key]
    local kind = kind_named(decode_spec(spec_text, override).kind)
    local cell = open_cell(kind, key, KEYS[op[2] + 1], spec_text, override)
    local verdict
    if cell.corrupt then
      verdict = refuses('state_corrupt', NEVER, NEVER, NEVER, NEVER)
    else
      verdict = in_server_time(cell, kind.decide(cell, op[3], op))
      if op[7] and not line_of(cell, KEYS[op[7]], KEYS[op[7] + 1]) then
        verdict = refuses('state_corrupt', NEVER, NEVER, NEVER, NEVER)
      end
      if verdict.ok and not shadow and somebody_ahead(cell, place) then
        verdict.ok, verdict.reason = false, 'queued'
        verdict.wait_us = cell.queue_until - cell.now
      end
    end
    verdicts[i], touched[i] = verdict, cell
    -- Who brought no window of this moment asks again: until then, nothing may be charged.
    if not verdict.ok and (not shadow or verdict.reason == 'window_unknown') then
      admitted = false
    end
  end
  if not admitted then
    -- Nothing will be charged: whoever would have let it pass says what is left as it is.
    for i, op in ipairs(ops) do
      local verdict, cell = verdicts[i], touched[i]
      if verdict.ok or verdict.reason == 'queued' then
        local free = in_server_time(cell, cell.kind.decide(cell, 0, op))
        verdict.remaining, verdict.reset_us = free.remaining, free.reset_us
      end
    end
  end
  return verdicts, touched, admitted
end
