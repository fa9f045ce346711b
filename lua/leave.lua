-- leave: give up places in lines; whoever is next is woken.
--
-- KEYS[1..] keys     four for each subject: its state, its aux set, its line's order and alive sets;
--           then indexes, as for admit
-- ARGV[1]   nonce    echoed, so that a reply can be told to belong to this call
-- ARGV[2]   channel  not used; nothing is published there
-- ARGV[3]   wake     where those who wait are woken
-- ARGV[4]   waiters  JSON: [[waiter, [position in KEYS of a state key, ...]], ...]
-- RETURNS   {nonce, now_us, call_seq, {number of waiters}}
--
-- @include clock
-- @include kinds
-- @include line
local nonce, channel, wake, waiters_json = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local waiters = cjson.decode(waiters_json)

local function leave(waiter, position)
  local raw = redis.pcall('HGET', KEYS[position], 'spec')
  local readable, spec = pcall(decode_spec, raw)
  local kind = readable and kind_named(spec.kind)
  if not kind then
    return
  end
  local cell = open_cell(kind, KEYS[position], KEYS[position + 1])
  if not cell.corrupt and not cell.absent then
    if line_of(cell, KEYS[position + 2], KEYS[position + 3]) then
      leave_line(cell, { waiter, 1 })
    end
  end
end

for _, waiter in ipairs(waiters) do
  for _, position in ipairs(waiter[2]) do
    leave(waiter[1], position)
  end
end
flush(channel, wake, nil, nil, true)
return { nonce, now_us, call_seq, { #waiters } }
