-- force: put a circuit into a state for every worker at once.
--
-- KEYS[1]  circuit  hash of the breaker
-- KEYS[2]  tickets  its aux set
-- KEYS[3]  circuits  circuits that have changed within a day, by time
-- KEYS[4]  denied   subjects of which some process keeps a denial, by when it ends
-- KEYS[5]  subjects  the index, as for admit: whoever is forced is not one too many
-- ARGV[1]  nonce    echoed, so that a reply can be told to belong to this call
-- ARGV[2]  channel  where state changes are published
-- ARGV[3]  wake     where those who wait are woken
-- ARGV[4]  state    closed|open|half_open|forced_open|disabled
-- ARGV[5]  spec     JSON: the declaration
-- RETURNS  {nonce, now_us, call_seq, {previous state, state}}; the two forced states last until
--          another is set, the other three lift them
--
-- @include clock
-- @include kinds
local circuit_key, tickets_key, circuits_key, denied_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local nonce, channel, wake, state, spec_text = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local cell = open_cell(kind_named('circuit'), circuit_key, tickets_key, spec_text)
if cell.corrupt then
  return redis.error_reply('STATECORRUPT the stored state cannot be read')
end
local previous = cell.forced ~= '' and cell.forced or cell.state
if state == 'forced_open' or state == 'disabled' then
  -- A new generation: results of calls admitted before the change count for nothing.
  cell.forced, cell.gen, cell.dirty = state, cell.gen + 1, true
  clear_members(cell)
  announce(cell, 'forced', previous, 'forced')
else
  cell.forced, cell.replaced = '', previous
  if state == 'open' then
    to_open(cell, 'forced', 0)
  elseif state == 'half_open' then
    to_half_open(cell)
  else
    to_closed(cell, 'forced')
    cell.closed_at = 0
  end
end
cell.freed = true
flush(channel, wake, circuits_key, denied_key, true)
return { nonce, now_us, call_seq, { previous, state } }
