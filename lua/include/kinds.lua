-- kinds: every kind of limit under the name that a declaration gives it.
-- @include makers
-- @include gcra
-- @include sliding_window
-- @include sliding_log
-- @include fixed_window
-- @include quota
-- @include rolling
-- @include circuit
-- @include slots
-- @include cold
-- @include subjects
--
-- DEFINES kind_named(name)  load, save, decide, take, settle, renew (leased kinds only), sync
--         (kinds that count against a limit); nil for a name that this script does not know
--
-- A kind is built when the call first needs it: building all of them would take longer than
-- deciding most calls.
local made_kinds = {}

local function kind_named(name)
  local kind = made_kinds[name]
  if not kind and makers[name] then
    kind = makers[name]()
    made_kinds[name], kind.name = kind, name
  end
  return kind
end
