-- judge: pass 1 of an admission: read every policy's state and ask each whether it lets one pass.
-- @include cells
-- @include verdicts
-- @include kinds
-- @include line
--
-- What is asked at once is asked of few subjects, so a question is opened once for all requests
-- that put it.
--
-- QUESTION  [op, ...], one for each policy, where an op is [spec, key, cost, shadow 0|1, windows,
--           line, most]; spec and key are positions in the call's list of declarations and in KEYS, where
--           the aux key follows; windows, a list of moments, is there for calendar windows and
--           requests that wait; line for requests that wait, the position in KEYS of the order key,
--           which the alive key follows, false where there is none; most for an op that takes as
--           much as there is, from its cost up to that
--
-- DEFINES open_question(ops, spec_texts, overrides)  the cells of its policies, in order
-- DEFINES judge(ops, touched, luck, place)  verdicts in order, and whether all that are enforced
--         let it pass; luck is 0..999999; for place see include/line
-- While the server's clock is behind what it was, time stands still for a cell; that comes on top.
local function in_server_time(cell, verdict)
  local behind = cell.now - now_us
  if behind > 0 then
    verdict.wait_us = verdict.wait_us > 0 and verdict.wait_us + behind or verdict.wait_us
    verdict.reset_us = verdict.reset_us > 0 and verdict.reset_us + behind or verdict.reset_us
  end
  return verdict
end

local function open_question(ops, spec_texts, overrides)
  local touched = {}
  for i, op in ipairs(ops) do
    local spec_text, key = spec_texts[op[1]], KEYS[op[2]]
    local override = overrides[key]
    local kind = kind_named(decode_spec(spec_text, override).kind)
    touched[i] = open_cell(kind, key, KEYS[op[2] + 1], spec_text, override)
  end
  return touched
end

local function verdict_of(op, cell, luck, place)
  if cell.corrupt then
    return refuses('state_corrupt', NEVER, NEVER, NEVER, NEVER)
  end
  if op[7] and cell.spec.lapse == 0 then
    return refuses('cost_above_limit', cell.spec.limit, 0, NEVER, 0)
  end
  local verdict = cell.kind.decide(cell, op[3], op[5], luck)
  if subjects.refuse and cell.spec.max_subjects then
    verdict = subjects.refuse(cell, verdict) or verdict
  end
  if op[7] and verdict.ok and not somebody_ahead(cell, place) then
    op.granted = math.max(op[3], math.min(op[7], op[3] + verdict.remaining))
    verdict = cell.kind.decide(cell, op.granted, op[5], luck)
  end
  verdict = in_server_time(cell, verdict)
  if op[6] and not line_of(cell, KEYS[op[6]], KEYS[op[6] + 1]) then
    return refuses('state_corrupt', NEVER, NEVER, NEVER, NEVER)
  end
  if verdict.ok and op[4] ~= 1 and somebody_ahead(cell, place) then
    verdict.ok, verdict.reason = false, 'queued'
    verdict.wait_us = cell.queue_until - cell.now
  end
  return verdict
end

local function judge(ops, touched, luck, place)
  local verdicts, admitted = {}, true
  for i, op in ipairs(ops) do
    local verdict = verdict_of(op, touched[i], luck, place)
    verdicts[i] = verdict
    -- Who brought no window of this moment asks again: until then, nothing may be charged.
    if not verdict.ok and (op[4] ~= 1 or verdict.reason == 'window_unknown') then
      admitted = false
    end
  end
  if not admitted then
    -- Nothing will be charged: whoever would have let it pass says what is left as it is.
    for i, op in ipairs(ops) do
      local verdict, cell = verdicts[i], touched[i]
      if verdict.ok or verdict.reason == 'queued' then
        local free = in_server_time(cell, cell.kind.decide(cell, 0, op[5], luck))
        verdict.remaining, verdict.reset_us = free.remaining, free.reset_us
      end
    end
  end
  return verdicts, admitted
end
