-- gcra_rule: the generic cell rate algorithm as arithmetic on numbers, in exact rationals.
--
-- The state is one moment, `tat` + `frac`/den microseconds: when the bucket will be full again.
-- One cell takes num/den microseconds to earn, where num/den is per/limit reduced. Amounts of
-- time below ("units") are 1/den microseconds, so that no admission loses a fraction; exact while
-- burst * num stays below 2^53.
-- @include life
-- @include numbers
--
-- DEFINES gcra_steps(spec)  num and den of a declaration, which keeps them, with the lapse that its
--         burst allows: 0 where nothing of it may be taken ahead
-- DEFINES gcra_level(tat, frac, now, den)  units that the bucket lacks
-- DEFINES gcra_moment(now, units, den)  tat and frac of a bucket that lacks so many units
-- DEFINES gcra_left(spec, units)  whole cells that are left
-- DEFINES gcra_answer(spec, units, cost)  reason, remaining, wait_us (-1: never) and reset_us
local function gcra_steps(spec)
  if not spec.num then
    spec.burst = spec.burst or spec.limit
    if spec.lapse then
      -- What is taken ahead may be spent up to `lapse` later. What is spent in a span t was charged
      -- in t + lapse, so the burst is kept when charges keep to one that is smaller by that much.
      -- A subject's own limit may fill the burst sooner than the declared one does.
      spec.lapse = math.min(spec.lapse, math.floor(spec.burst * spec.per / spec.limit / 4))
      local ahead = math.ceil(spec.lapse * spec.limit / spec.per)
      if ahead >= spec.burst then
        ahead, spec.lapse = 0, 0
      end
      spec.burst = spec.burst - ahead
    end
    local common = gcd(spec.per, spec.limit)
    spec.num, spec.den = spec.per / common, spec.limit / common
  end
  return spec.num, spec.den
end

local function gcra_level(tat, frac, now, den)
  return math.max(0, (tat - now) * den + frac)
end

local function gcra_moment(now, units, den)
  local ahead = math.floor(units / den)
  -- A hundred years: no debt goes further, or the moment would not fit a whole number.
  if ahead > 36525 * 86400 * 1000000 then
    return now + 36525 * 86400 * 1000000, 0
  end
  return now + ahead, math.floor(units - ahead * den)
end

local function gcra_left(spec, units)
  return math.max(0, math.floor((spec.burst * spec.num - units) / spec.num))
end

local function gcra_answer(spec, units, cost)
  local after = units + cost * spec.num
  local over = after - spec.burst * spec.num
  if cost > spec.burst then
    return 'cost_above_limit', gcra_left(spec, units), -1, math.ceil(units / spec.den)
  elseif over > 0 then
    return 'limit_reached', gcra_left(spec, units), math.ceil(over / spec.den),
           math.ceil(units / spec.den)
  end
  return 'ok', gcra_left(spec, after), 0, math.ceil(after / spec.den)
end
