-- thresholds: tell once a window that a quota has reached a share of its limit.
-- @include numbers
-- @include cells
--
-- DEFINES reaches(used, share, limit)  whether it is that share or more; 0.07 of 100 is 7
-- DEFINES warn(cell, used, limit, window_end)  emits quota:threshold for shares newly reached
local function reaches(used, share, limit)
  return used >= share * limit * (1 - 1e-12)
end

local function warn(cell, used, limit, window_end)
  for index, share in ipairs(cell.spec.warn_at) do
    if index > cell.warned and reaches(used, share, limit) then
      cell.warned, cell.seq = index, cell.seq + 1
      emit(cell, {
        type = 'quota:threshold', seq = text(cell.seq), threshold = string.format('%.17g', share),
        used = text(used), limit = text(limit), window_end_us = text(window_end),
      })
    end
  end
end
