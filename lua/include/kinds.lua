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
-- DEFINES kinds  by name: load, save, decide, take, settle, renew (leased kinds only), sync
--         (kinds that count against a limit)
local kinds = {
  gcra = gcra, sliding_window = sliding_window, sliding_log = sliding_log,
  fixed_window = fixed_window, quota = quota, rolling = rolling, circuit = circuit, slots = slots,
}
