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
local function judge(ops, spec_texts, overrides, place)
  local verdicts, touched, admitted = {}, {}, true
  for i, op in ipairs(ops) do
    local spec_text, key, shadow = spec_texts[op[1]], KEYS[op[2]], op[4] == 1
    local override = overrides[key]
    local kind = kinds[decode_spec(spec_text, override).kind]
    local cell = open_cell(kind, key, KEYS[op[2] + 1], spec_text, override)
    local verdict
    if cell.corrupt then
      verdict = refuses('state_corrupt', NEVER, NEVER, NEVER, NEVER)
    else
      verdict = kind.decide(cell, op[3], op)
      if op[7] then
        line_of(cell, KEYS[op[7]], KEYS[op[7] + 1])
      end
      if verdict.ok and not shadow and somebody_ahead(cell, place) then
        verdict.ok, verdict.reason = false, 'queued'
        verdict.wait_us = cell.queue_until - cell.now
        verdict.remaining = verdict.remaining < 0 and NEVER or verdict.remaining + op[3]
      end
    end
    verdicts[i], touched[i] = verdict, cell
    if not verdict.ok and not shadow then
      admitted = false
    end
  end
  return verdicts, touched, admitted
end
