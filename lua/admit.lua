-- admit: decide any number of requests in order; each charges all of its policies or none.
--
-- Pass 1 judges every operation of a request, pass 2 charges them, in memory and only if all
-- admit; the store is written once, at the end, so a denied request leaves it byte for byte as
-- it was, and a later request of the same call sees what an earlier one took. One thing is written
-- even then, once: that a declaration has changed, since what was used is carried over as of now.
--
-- KEYS[1]   overrides  hash of limits set for single subjects
-- KEYS[2]   circuits   circuits that have changed within a day, by time
-- KEYS[3..] keys       two for each subject: its state, its aux set; then, for requests that
--           wait, two for each subject's line: its order, its alive set
-- ARGV[1]   nonce      echoed, so that a reply can be told to belong to this call
-- ARGV[2]   channel    where state changes are published
-- ARGV[3]   wake       where those who wait are woken
-- ARGV[4]   requests   JSON: [[permit, [op, ...], ticket, lease_us, waiter], ...]; for op see
--           include/judge; the last three only for a request that wants to wait, ticket 0 first
-- ARGV[5]   subjects   how many subjects KEYS names
-- ARGV[6..] specs      JSON: one declaration each
-- RETURNS   {nonce, now_us, call_seq, {{admitted 0|1, {op reply, ...}, ticket or 0}, ...}}; an op
--           reply is {reason, limit, remaining, wait_us, reset_us, expires_us or 0, hold
--           numbers...}, -1 for none (limit, remaining) and for never (wait_us)
--
-- @include clock
-- @include judge
-- @include overrides
local overrides_key, circuits_key = KEYS[1], KEYS[2]
local nonce, channel, wake, requests_json, subjects = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local spec_texts = {}
for i = 6, #ARGV do
  spec_texts[i - 5] = ARGV[i]
end

local function report(verdict, hold, expires)
  local line = { verdict.reason, verdict.limit, verdict.remaining, verdict.wait_us,
                 verdict.reset_us, expires or 0 }
  for _, number in ipairs(hold or {}) do
    line[#line + 1] = number
  end
  return line
end

-- A waiter stands in the line of whatever refused it, and of nothing else: it must not hold up
-- those who want what it could have had.
local function queue_up(ops, verdicts, touched, place, admitted)
  local hopeless = false
  for i, op in ipairs(ops) do
    local refused = not verdicts[i].ok and op[4] ~= 1
    if refused and (touched[i].corrupt or verdicts[i].wait_us == NEVER) then
      hopeless = true
    elseif refused and place[2] == 0 then
      place[2] = next_ticket(touched[i])
    end
  end
  for i, op in ipairs(ops) do
    local cell = touched[i]
    if not cell.corrupt and op[4] ~= 1 then
      if admitted or hopeless or verdicts[i].ok then
        leave_line(cell, place)
      else
        stand_in_line(cell, place)
      end
    end
  end
  return (admitted or hopeless) and 0 or place[2]
end

local function admit(permit, ops, overrides, place)
  local verdicts, touched, admitted = judge(ops, spec_texts, overrides, place)
  local lines = {}
  for i, op in ipairs(ops) do
    local verdict, cell = verdicts[i], touched[i]
    if cell.redeclared and not cell.corrupt and verdict.reason ~= 'window_unknown' then
      cell.dirty = true
    end
    if admitted and verdict.ok then
      lines[i] = report(verdict, cell.kind.take(cell, op[3], permit))
    else
      lines[i] = report(verdict)
    end
  end
  local ticket = place and queue_up(ops, verdicts, touched, place, admitted) or 0
  return { admitted and 1 or 0, lines, ticket }
end

local overrides = read_overrides(overrides_key, 3, 1 + 2 * tonumber(subjects))
local replies = {}
for i, request in ipairs(cjson.decode(requests_json)) do
  local place = request[3] and { request[5], request[3], request[4] }
  replies[i] = admit(request[1], request[2], overrides, place)
end
flush(channel, wake, circuits_key)
return { nonce, now_us, call_seq, replies }
