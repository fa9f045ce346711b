-- sync: tighten one subject's state to the figures that a provider gives of its own limit.
--
-- Nothing is ever loosened: what we know to be used stays used. Nothing changes for a subject that
-- would be one too many.
--
-- KEYS[1]  state      the subject's state
-- KEYS[2]  aux        its aux set
-- KEYS[3]  overrides  hash of limits set for single subjects
-- KEYS[4]  epoch      of the subject, where it may begin otherwise than fresh; then the index, as
--          for admit
-- ARGV[1]  nonce      echoed, so that a reply can be told to belong to this call
-- ARGV[2]  channel    where state changes are published
-- ARGV[3]  wake       not used; nothing is freed
-- ARGV[4]  figures    JSON: [{remaining, reset_us, retry_us}, windows], each figure -1 where it is
--          not known: units that the provider still admits, when it will be full again, and before
--          when it admits nothing; third, with an epoch, what include/cold looks at
-- ARGV[5..] specs     JSON: one declaration each of the limits that the subject may have; that
--          under which it was last counts, else the first
-- RETURNS  {nonce, now_us, call_seq, {changed 0|1, -1 where no window holds this moment}}
--
-- @include clock
-- @include kinds
local state_key, aux_key, overrides_key = KEYS[1], KEYS[2], KEYS[3]
local nonce, channel, wake, figures_json, spec_text = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local last = redis.pcall('HGET', state_key, 'spec')
for i = 6, #ARGV do
  if ARGV[i] == last then
    spec_text = last
  end
end
local figures = cjson.decode(figures_json)
if figures[3] then
  cold.look(figures[3], nonce, true)
end
local override = redis.call('HGET', overrides_key, state_key:match('}:(.*)$')) or nil
local kind = kind_named(decode_spec(spec_text, override).kind)
local cell = open_cell(kind, state_key, aux_key, spec_text, override)
if cell.corrupt then
  return redis.error_reply('STATECORRUPT the stored state cannot be read')
elseif not kind.sync then
  return redis.error_reply('NOSYNC this kind of policy has no figures to take')
end
if subjects.refuse and cell.spec.max_subjects and subjects.refuse(cell) then
  return { nonce, now_us, call_seq, { 0 } }
end
if kind.sync(cell, figures[1], figures[2]) == 'window_unknown' then
  return { nonce, now_us, call_seq, { -1 } }
end
flush(channel, wake)
return { nonce, now_us, call_seq, { cell.dirty and 1 or 0 } }
