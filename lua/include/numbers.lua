-- numbers: whole numbers below 2^53 in and out of text, without loss.
--
-- DEFINES text(n)      digits of a whole number; tostring() would keep only 14 of them
-- DEFINES gcd(a, b)    greatest common divisor of two whole numbers
-- DEFINES whole(s)     the number that a stored field holds, or nil where it holds none
-- DEFINES storable(n)  n, or the nearest number that `whole` reads back
local function text(n)
  return string.format('%.0f', n)
end

local function storable(n)
  return math.max(-9007199254740991, math.min(9007199254740991, n))
end

local function gcd(a, b)
  while b ~= 0 do
    a, b = b, math.fmod(a, b)
  end
  return a
end

local function whole(s)
  local n = s and tonumber(s)
  if n and n == math.floor(n) and n < 9007199254740992 and n > -9007199254740992 then
    return n
  end
  return nil
end
