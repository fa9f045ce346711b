-- transitions: the only ways in which a circuit changes state.
--
-- Every transition opens a new generation: tickets of an earlier one are gone with the aux set,
-- and a result that names another generation changes nothing. Who forces a state says in
-- cell.replaced which one was in force before, the two forced ones included.
-- @include numbers
-- @include cells
-- @include outcomes
--
-- DEFINES to_open(cell, reason, luck)   luck in 0..999999 places the jitter
-- DEFINES to_half_open(cell)
-- DEFINES to_closed(cell, reason)
-- DEFINES announce(cell, kind, previous, reason)
local function announce(cell, kind, previous, reason)
  cell.seq, cell.changed = cell.seq + 1, cell.now
  emit(cell, {
    type = 'circuit:' .. kind, seq = text(cell.seq), generation = text(cell.gen),
    previous = previous, state = cell.forced ~= '' and cell.forced or cell.state,
    open_until_us = text(cell.state == 'open' and cell.open_until or 0), reason = reason,
  })
end

local function enter(cell, state)
  local previous = cell.replaced or cell.state
  cell.state, cell.gen, cell.passed, cell.streak = state, cell.gen + 1, 0, 0
  cell.reporters, cell.live = {}, 0
  forget_outcomes(cell)
  clear_members(cell)
  return previous
end

local function to_open(cell, reason, luck)
  local spec = cell.spec
  local previous = enter(cell, 'open')
  local pause = math.min(spec.open_for * 2 ^ math.min(cell.opens, 40),
                         math.max(spec.open_for, spec.max_open_for))
  -- Jitter only ever lengthens: the minimum that was asked for holds.
  pause = pause + math.floor(pause * spec.jitter * luck / 1000000 + 1e-6)
  cell.opens, cell.open_until = cell.opens + 1, cell.now + pause
  announce(cell, 'opened', previous, reason)
end

local function to_half_open(cell)
  announce(cell, 'halfopened', enter(cell, 'half_open'),
           cell.replaced and 'forced' or 'open_time_over')
end

local function to_closed(cell, reason)
  local previous = enter(cell, 'closed')
  cell.opens, cell.open_until, cell.closed_at = 0, 0, cell.now
  announce(cell, 'closed', previous, reason)
end
