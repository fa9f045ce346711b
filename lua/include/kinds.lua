-- kinds: every kind of limit under the name that a declaration gives it.
-- @include gcra
-- @include sliding_window
-- @include sliding_log
-- @include fixed_window
-- @include quota
-- @include rolling
-- @include circuit
-- @include slots
--
-- DEFINES kind_named(name)  load, save, decide, take, settle, renew (leased kinds only), sync
--         (kinds that count against a limit); nil for a name that there is not
--
-- A kind is built when the call first needs it: building all of them would take longer than
-- deciding most calls.
local kind_named
do
  local makers = {
    gcra = make_gcra, sliding_window = make_sliding_window, sliding_log = make_sliding_log,
    fixed_window = make_fixed_window, quota = make_quota, rolling = make_rolling,
    circuit = make_circuit, slots = make_slots,
  }
  local made = {}

  kind_named = function(name)
    local kind = made[name]
    if not kind and makers[name] then
      kind = makers[name]()
      made[name], kind.name = kind, name
    end
    return kind
  end
end
