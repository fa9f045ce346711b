-- admit: decide any number of requests in order; each charges all of its policies or none.
--
-- Pass 1 judges every operation of a request, pass 2 charges them, in memory and only if all
-- admit; the store is written once, at the end, so a denied request leaves it byte for byte as
-- it was, and a later request of the same call sees what an earlier one took.
--
-- KEYS[1]   overrides  hash of limits set for single subjects
-- KEYS[2..] keys       two for each subject: its state, its aux set
-- ARGV[1]   nonce      echoed, so that a reply can be told to belong to this call
-- ARGV[2]   channel    where state changes are published
-- ARGV[3]   requests   JSON: [[permit, [op, ...]], ...]; for op see include/judge
-- ARGV[4..] specs      JSON: one declaration each
-- RETURNS   {nonce, now_us, call_seq, {{admitted 0|1, {op reply, ...}}, ...}}; an op reply is
--           {reason, limit, remaining, wait_us, reset_us, expires_us or 0, hold numbers...},
--           -1 for none (limit, remaining) and for never (wait_us)
--
-- @include clock
-- @include judge
-- @include overrides
local overrides_key, last_key = KEYS[1], #KEYS
local nonce, channel, requests_json = ARGV[1], ARGV[2], ARGV[3]
local spec_texts = {}
for i = 4, #ARGV do
  spec_texts[i - 3] = ARGV[i]
end

local function report(verdict, hold, expires)
  local line = { verdict.reason, verdict.limit, verdict.remaining, verdict.wait_us,
                 verdict.reset_us, expires or 0 }
  for _, number in ipairs(hold or {}) do
    line[#line + 1] = number
  end
  return line
end

local function admit(permit, ops, overrides)
  local verdicts, touched, admitted = judge(ops, spec_texts, overrides)
  local lines = {}
  for i, op in ipairs(ops) do
    local verdict, cell = verdicts[i], touched[i]
    if admitted and verdict.ok then
      lines[i] = report(verdict, cell.kind.take(cell, op[3], permit))
    else
      if verdict.ok and verdict.remaining >= 0 then
        -- Nothing was charged: what remains is what would have been left, and the cost.
        verdict.remaining = verdict.remaining + op[3]
      end
      lines[i] = report(verdict)
    end
  end
  return { admitted and 1 or 0, lines }
end

local overrides = read_overrides(overrides_key, 2, last_key)
local replies = {}
for i, request in ipairs(cjson.decode(requests_json)) do
  replies[i] = admit(request[1], request[2], overrides)
end
flush(channel)
return { nonce, now_us, call_seq, replies }
