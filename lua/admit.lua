-- admit: decide any number of requests in order; each charges all of its policies or none.
--
-- Pass 1 judges every operation of a request, pass 2 charges them, in memory and only if all
-- admit; the store is written once, at the end, so a denied request leaves it byte for byte as
-- it was, and a later request of the same call sees what an earlier one took. One thing is written
-- even then, once: that a declaration has changed, since what was used is carried over as of now.
--
-- KEYS[1]   overrides  hash of limits set for single subjects
-- KEYS[2]   circuits   circuits that have changed within a day, by time
-- KEYS[3]   denied     subjects of which some process keeps a denial, by when it ends
-- KEYS[4..] keys       two for each subject: its state, its aux set; then, for requests that
--           wait, two for each subject's line: its order, its alive set; then, where a subject
--           may begin otherwise than fresh, the epoch; then, of each policy that says how many
--           subjects may have state, the index of them (include/subjects)
-- ARGV[1]   nonce      echoed, so that a reply can be told to belong to this call
-- ARGV[2]   channel    where state changes are published
-- ARGV[3]   wake       where those who wait are woken
-- ARGV[4]   asked      JSON: [[question, ...], [request, ...]]; for questions see include/judge; a
--                      request is the position of its question, or a list of that, the permit,
--                      its luck (0..999999) and, where it wants to wait, its ticket (0 first),
--                      lease_us and waiter; only rates can do without the list. The position is
--                      negative where the admission may yet be undone. Third, where
--                      the caller keeps denials, for how many us at most, else false; fourth,
--                      where a subject may begin otherwise than fresh, what include/cold looks at
-- ARGV[5]   pair_count  how many subjects KEYS names
-- ARGV[6..] specs      JSON: one declaration each
-- RETURNS   {nonce, now_us, call_seq, {{admitted 0|1, {op reply, ...}, ticket or 0, how much was
--           taken for an op that has most, else 0}, ...}}; an op
--           reply is {reason, limit, remaining, wait_us, reset_us, expires_us or 0, hold
--           numbers...}, -1 for none (limit, remaining) and for never (wait_us)
--
-- @include clock
-- @include express
-- @include judge
-- @include overrides
-- @include undoing
local overrides_key, circuits_key, denied_key = KEYS[1], KEYS[2], KEYS[3]
local nonce, channel, wake, asked_json, pair_count = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
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
    elseif refused and place[2] == 0 and verdicts[i].reason ~= 'too_many_subjects' then
      place[2] = next_ticket(touched[i])
    end
  end
  for i, op in ipairs(ops) do
    local cell = touched[i]
    -- Nothing is written for a subject that would be one too many, a line included.
    if not cell.corrupt and op[4] ~= 1 and verdicts[i].reason ~= 'too_many_subjects' then
      if admitted or hopeless or verdicts[i].ok then
        leave_line(cell, place)
      else
        stand_in_line(cell, place)
      end
    end
  end
  return (admitted or hopeless) and 0 or place[2]
end

local function admit(ops, touched, undoable, permit, luck, place)
  local verdicts, admitted = judge(ops, touched, luck, place)
  local lines, kept = {}, admitted and undoable and {} or nil
  for i, op in ipairs(ops) do
    local verdict, cell = verdicts[i], touched[i]
    if cell.redeclared and not cell.corrupt and verdict.reason ~= 'window_unknown' then
      cell.dirty = true
    end
    if kept then
      kept[i] = verdict.ok and as_it_is(cell)
    end
    if admitted and verdict.ok then
      lines[i] = report(verdict, cell.kind.take(cell, op.granted or op[3], permit, op.granted))
    else
      lines[i] = report(verdict)
    end
  end
  local ticket = place and queue_up(ops, verdicts, touched, place, admitted) or 0
  for i, before in ipairs(kept or {}) do
    kept[i] = before and what_changed(before, touched[i]) or ''
  end
  return { admitted and 1 or 0, lines, ticket, ops[1].granted or 0, kept }, admitted
end

local overrides = read_overrides(overrides_key, 4, 2 + 2 * tonumber(pair_count))
local asked = cjson.decode(asked_json)
local questions, opened, replies = asked[1], {}, {}
if asked[4] then
  cold.look(asked[4], nonce, true)
end
for i, ops in ipairs(questions) do
  opened[i] = open_question(ops, spec_texts, overrides)
end
-- Until something is taken, whoever asks what has just been refused is refused in the same words.
local refused = {}
for i, request in ipairs(asked[2]) do
  local listed = type(request) == 'table'
  local position = listed and request[1] or request
  local q, undoable = math.abs(position), position < 0
  if listed then
    local place = request[4] and { request[6], request[4], request[5] }
    replies[i] = admit(questions[q], opened[q], undoable, request[2], request[3], place)
    refused = {}
  else
    replies[i] = refused[q]
    if not replies[i] then
      local reply, admitted = admit(questions[q], opened[q], undoable)
      refused = admitted and {} or refused
      refused[q] = not admitted and reply or nil
      replies[i] = reply
    end
  end
end
flush(channel, wake, circuits_key)
if asked[3] then
  note_denials(denied_key, asked, replies)
end
return { nonce, now_us, call_seq, replies }
