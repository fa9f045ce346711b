-- peek: what admit would answer to each request now, on its own; writes nothing.
--
-- KEYS[1]   overrides  hash of limits set for single subjects
-- KEYS[2]   circuits   not used
-- KEYS[3..] keys       two for each subject: its state, its aux set
-- ARGV[1]   nonce      echoed, so that a reply can be told to belong to this call
-- ARGV[2]   channel    not used; the arguments are those of admit
-- ARGV[3]   wake       not used
-- ARGV[4]   requests   JSON: [[permit, [op, ...]], ...]; for op see include/judge
-- ARGV[5]   subjects   how many subjects KEYS names
-- ARGV[6..] specs      JSON: one declaration each
-- RETURNS   as admit, without holds
--
-- @include clock
-- @include judge
-- @include overrides
local overrides_key = KEYS[1]
local nonce, requests_json, subjects = ARGV[1], ARGV[4], ARGV[5]
local spec_texts = {}
for i = 6, #ARGV do
  spec_texts[i - 5] = ARGV[i]
end

local overrides = read_overrides(overrides_key, 3, 1 + 2 * tonumber(subjects))
local replies = {}
for i, request in ipairs(cjson.decode(requests_json)) do
  local verdicts, _, admitted = judge(request[2], spec_texts, overrides)
  local lines = {}
  for j, verdict in ipairs(verdicts) do
    lines[j] = { verdict.reason, verdict.limit, verdict.remaining, verdict.wait_us,
                 verdict.reset_us, 0 }
  end
  replies[i] = { admitted and 1 or 0, lines }
end
return { nonce, now_us, call_seq, replies }
