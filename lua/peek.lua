-- peek: what admit would answer to each request now, on its own; writes nothing.
--
-- KEYS[1]   overrides  hash of limits set for single subjects
-- KEYS[2]   circuits   not used
-- KEYS[3]   denied     not used
-- KEYS[4..] keys       two for each subject: its state, its aux set; then the epoch and indexes, as for admit
-- ARGV[1]   nonce      echoed, so that a reply can be told to belong to this call
-- ARGV[2]   channel    not used; the arguments are those of admit
-- ARGV[3]   wake       not used
-- ARGV[4]   asked      JSON: [[question, ...], [request, ...]] as for admit, none of which waits
-- ARGV[5]   pair_count  how many subjects KEYS names
-- ARGV[6..] specs      JSON: one declaration each
-- RETURNS   as admit, without holds
--
-- @include clock
-- @include judge
-- @include overrides
local overrides_key = KEYS[1]
local nonce, asked_json, pair_count = ARGV[1], ARGV[4], ARGV[5]
local spec_texts = {}
for i = 6, #ARGV do
  spec_texts[i - 5] = ARGV[i]
end

local overrides = read_overrides(overrides_key, 4, 2 + 2 * tonumber(pair_count))
local asked = cjson.decode(asked_json)
local questions, replies = asked[1], {}
if asked[4] then
  cold.look(asked[4], nonce, false)
end
for i, request in ipairs(asked[2]) do
  local q, luck = request, nil
  if type(request) == 'table' then
    q, luck = request[1], request[3]
  end
  local verdicts, admitted = judge(questions[q], open_question(questions[q], spec_texts, overrides),
                                   luck)
  local lines = {}
  for j, verdict in ipairs(verdicts) do
    lines[j] = { verdict.reason, verdict.limit, verdict.remaining, verdict.wait_us,
                 verdict.reset_us, 0 }
  end
  replies[i] = { admitted and 1 or 0, lines }
end
return { nonce, now_us, call_seq, replies }
