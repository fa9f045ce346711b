-- overrides: limits set for single subjects at run time, one hash a namespace.
--
-- The hash is the one permanent key: it is configuration, and goes only by being deleted.
--
-- DEFINES read_overrides(overrides_key, first, last)  JSON texts by key, for KEYS[first..last]
local function read_overrides(overrides_key, first, last)
  local fields, found = {}, {}
  for i = first, last, 2 do
    fields[#fields + 1] = KEYS[i]:match('}:(.*)$')
  end
  if #fields == 0 then
    return found
  end
  local values = redis.pcall('HMGET', overrides_key, unpack(fields))
  if not values.err then
    for i, value in ipairs(values) do
      if value then
        found[KEYS[first + 2 * (i - 1)]] = value
      end
    end
  end
  return found
end
