-- change: what a subject has used, carried over into a changed declaration.
--
-- DEFINES carried(spec, used, was, is)  units used after a capacity changed from `was` to `is`
--         by spec.on_change: keep, as where there is none (what was used stays used), scale (the
--         same share of the capacity), remaining (what was left stays left), reset (nothing used).
--         Nothing used stays nothing used, whether the state still exists or has ended.
local function carried(spec, used, was, is)
  if spec.on_change == 'reset' or used <= 0 then
    return 0
  elseif spec.on_change == 'scale' then
    return used * is / was
  elseif spec.on_change == 'remaining' then
    return math.max(0, is - math.max(0, was - used))
  end
  return used
end
