-- inspect: one key's state as "name value" lines that a person can read; writes nothing.
--
-- It stands alone, so that it also runs as: redis-cli --eval lua/inspect.lua '<key>'
--
-- KEYS[1]  key  a state key: stanchion:{<namespace>}:<rate|quota|circuit|slots>:<policy>:<subject>
-- RETURNS  lines "name value": what the key is, its declaration as declared.*, how long it lives,
--          and its fields, with moments also told relative to now in seconds (*_in)
local key = KEYS[1]
local lines = {}

local function line(name, value)
  lines[#lines + 1] = name .. ' ' .. tostring(value)
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local namespace, kind, policy, subject = key:match('^stanchion:{([^}]*)}:([^:]*):([^:]*):(.*)$')
line('key', key)
if not namespace then
  line('error', 'not a state key: expected stanchion:{<namespace>}:<kind>:<policy>:<subject>')
  return lines
end
line('namespace', namespace)
line('kind', kind)
line('policy', policy)
line('subject', subject)

local flat = redis.pcall('HGETALL', key)
if flat.err then
  line('error', flat.err)
  return lines
elseif #flat == 0 then
  line('absent', 'nothing is stored: nothing has been used')
  return lines
end
local fields = {}
for i = 1, #flat, 2 do
  fields[flat[i]] = flat[i + 1]
end
line('ttl', string.format('%.3f', redis.call('PTTL', key) / 1000))

local readable, spec = pcall(cjson.decode, fields.spec or '')
if not readable then
  line('error', 'no readable declaration is stored in field spec')
  spec = {}
end
if fields.override then
  local ok, override = pcall(cjson.decode, fields.override)
  for name, value in pairs(ok and override or {}) do
    spec[name] = value
  end
end

-- Numbers as a person writes them; a moment (us since the epoch) also as seconds from now.
local MOMENT = { tat = true, start = true, ['end'] = true, open_until = true, closed_at = true,
                 changed = true, queue = true,
                 at = true, ['until'] = true }
local DURATION = { per = true, lease = true, window = true, slow_call = true, open_for = true,
                   max_open_for = true, ramp_up = true }
local function plain(value)
  if type(value) == 'number' and value == math.floor(value) then
    return string.format('%.0f', value)
  elseif type(value) == 'table' then
    local parts = {}
    for i, part in ipairs(value) do
      parts[i] = plain(part)
    end
    return table.concat(parts, ',')
  end
  return tostring(value)
end

local names = {}
for name in pairs(spec) do
  names[#names + 1] = name
end
table.sort(names)
for _, name in ipairs(names) do
  if DURATION[name] and tonumber(spec[name]) then
    line('declared.' .. name, string.format('%.17g', spec[name] / 1000000) .. 's')
  else
    line('declared.' .. name, plain(spec[name]))
  end
end

names = {}
for name in pairs(fields) do
  if name ~= 'spec' and name ~= 'override' then
    names[#names + 1] = name
  end
end
table.sort(names)
for _, name in ipairs(names) do
  line(name, fields[name])
  local moment = MOMENT[name] and tonumber(fields[name])
  if moment and moment > 0 then
    line(name .. '_in', string.format('%.6f', (moment - now) / 1000000))
  end
end

local AUX = { rate = spec.kind == 'sliding_log' and 'rate.log' or 'rate.settled',
              quota = 'quota.holds', circuit = 'circuit.calls', slots = 'slots.leases' }
if AUX[kind] then
  line('see', 'stanchion:{' .. namespace .. '}:' .. AUX[kind] .. ':' .. policy .. ':' .. subject)
end
return lines
