-- inspect: one key's state as "name value" lines that a person can read; writes nothing.
--
-- It stands alone, so that it also runs as: redis-cli --eval lua/inspect.lua '<key>'
-- It looks at the aux set beside the key too, which has the same hash tag.
--
-- KEYS[1]  key  a state key: stanchion:{<namespace>}:<rate|quota|circuit|slots>:<policy>:<subject>
-- KEYS[2..] aux  the aux sets that it may have, for servers that want every key told; redis-cli
--          may leave them out elsewhere
-- RETURNS  lines "name value": what the key is, what is used and left now, its declaration as
--          declared.*, its fields with moments also told in seconds from now (*_in), and what
--          the aux set holds
local key = KEYS[1]
local lines = {}

local function line(name, value)
  lines[#lines + 1] = name .. ' ' .. tostring(value)
end

-- Numbers as a person writes them: whole ones with all their digits, others to three places.
local function plain(value)
  if type(value) == 'number' then
    return string.format(value == math.floor(value) and '%.0f' or '%.3f', value)
  elseif type(value) == 'table' then
    local parts = {}
    for i, part in ipairs(value) do
      parts[i] = plain(part)
    end
    return table.concat(parts, ',')
  end
  return tostring(value)
end

local function seconds(us)
  return string.format('%.6f', us / 1000000)
end

local function sorted_names(map)
  local names = {}
  for name in pairs(map) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local prefix, family, policy, subject = key:match('^(stanchion:{[^}]*}:)([^:]*):([^:]*):(.*)$')
line('key', key)
if not prefix then
  line('error', 'not a state key: expected stanchion:{<namespace>}:<kind>:<policy>:<subject>')
  return lines
end
line('namespace', prefix:match('{([^}]*)}'))
line('kind', family)
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
if fields.v ~= '1' then
  line('error', 'schema ' .. tostring(fields.v) .. ' is not the one that is known here, 1')
end

local readable, spec = pcall(cjson.decode, fields.spec or '')
if not readable or type(spec) ~= 'table' or type(spec.kind) ~= 'string' then
  line('error', 'no readable declaration is stored in field spec')
  spec = {}
end
local override_readable, override = pcall(cjson.decode, fields.override or '{}')
override = override_readable and type(override) == 'table' and override or {}
spec.burst = spec.burst or spec.kind == 'gcra' and spec.limit or nil
if override.limit and not override.burst and spec.burst == spec.limit then
  spec.burst = override.limit
end
for name, value in pairs(override) do
  spec[name] = value
end

local AUX = { rate = spec.kind == 'sliding_log' and 'log' or 'settled', quota = 'holds',
              circuit = 'calls', slots = 'leases' }
local aux = AUX[family] and
            table.concat({ prefix .. family .. '.' .. AUX[family], policy, subject }, ':')

local function number(name)
  return tonumber(fields[name] or '') or 0
end

-- What members of the aux set weigh that are live (or, for a log, still in the window).
local function live_weight(since)
  local weight, count = 0, 0
  local members = redis.pcall('ZRANGEBYSCORE', aux, '(' .. plain(since), '+inf')
  for _, member in ipairs(members) do
    weight = weight + (tonumber(member:match('^[^:]*:(%d+)') or member:match(':(%d+)$')) or 1)
    count = count + 1
  end
  return weight, count
end

local function sliced(slices)
  local width, sum = math.ceil(spec.per / slices), 0
  local current = math.floor(now / width)
  for name, amount in pairs(fields) do
    local index = tonumber(name:match('^b(%d+)$'))
    if index and index > current - slices then
      sum = sum + amount
    elseif index == current - slices then
      sum = sum + amount * (width - (now - current * width)) / width
    end
  end
  return sum, spec.limit
end

local function circuit_lines()
  local _, in_flight = live_weight(now)
  line('now', fields.forced ~= '' and fields.forced or fields.state)
  line(fields.state == 'half_open' and 'probes' or 'in_flight', in_flight)
  local calls, failures, slow = 0, 0, 0
  local width = spec.window and math.ceil(spec.window / 10)
  for name, value in pairs(fields) do
    local index = tonumber(name:match('^w(%d+)$'))
    if index and width and index > math.floor(now / width) - 10 then
      local c, f, s = value:match('^(%d+)/(%d+)/(%d+)$')
      calls, failures, slow = calls + (c or 0), failures + (f or 0), slow + (s or 0)
    end
  end
  if fields.ring then
    calls = #fields.ring
    failures = select(2, fields.ring:gsub('[fF]', ''))
    slow = select(2, fields.ring:gsub('[SF]', ''))
  end
  line('window_calls', plain(calls))
  line('window_failures', plain(failures))
  line('window_slow', plain(slow))
end

-- Used and capacity now, by kind; the tests hold them against what peek answers.
local USED = {
  gcra = function()
    local level = number('tat') - now + number('frac') / (spec.limit or 1)
    return math.max(0, level) * spec.limit / spec.per, spec.burst
  end,
  sliding_window = function() return sliced(spec.slices) end,
  rolling = function() return sliced(spec.slices) end,
  sliding_log = function() return live_weight(now - spec.per), spec.limit end,
  fixed_window = function()
    return now < number('start') + spec.per and number('used') or 0, spec.limit
  end,
  quota = function()
    if now >= number('end') then
      return 0, spec.limit
    end
    return number('used') + number('held'), spec.limit + number('carry')
  end,
  slots = function() return live_weight(now), spec.limit end,
}

local function use_lines()
  if family == 'circuit' then
    circuit_lines()
  elseif USED[spec.kind] then
    local used, capacity = USED[spec.kind]()
    line('in_use', plain(used))
    line('remaining', plain(math.max(0, math.floor(capacity - used + 1e-6))))
    line('capacity', plain(capacity))
  end
end

local MOMENT = { tat = true, start = true, ['end'] = true, open_until = true, closed_at = true,
                 at = true, ['until'] = true, changed = true, queue = true }
local DURATION = { per = true, lease = true, window = true, slow_call = true, open_for = true,
                   max_open_for = true, ramp_up = true }
local function declared_lines()
  for _, name in ipairs(sorted_names(spec)) do
    local value = spec[name]
    local duration = DURATION[name] and tonumber(value)
    line('declared.' .. name, duration and plain(duration / 1000000) .. 's' or plain(value))
  end
end

local TEXT = { v = true, state = true, forced = true, ring = true }
local function field_lines()
  for _, name in ipairs(sorted_names(fields)) do
    if name ~= 'spec' and name ~= 'override' then
      line(name, fields[name])
      local slice = name:match('^w%d+$') and fields[name]:match('^%d+/%d+/%d+$')
      if not TEXT[name] and not slice and not tonumber(fields[name]) then
        line('error', 'field ' .. name .. ' is not a number')
      end
      local moment = MOMENT[name] and tonumber(fields[name])
      if moment and moment > 0 then
        line(name .. '_in', seconds(moment - now))
      end
    end
  end
end

local function aux_lines()
  line('aux', aux)
  local members = redis.pcall('ZRANGE', aux, '0', '19', 'WITHSCORES')
  if members.err then
    line('error', 'the aux set: ' .. members.err)
  end
  for i = 1, #members, 2 do
    line('aux.' .. members[i], seconds(tonumber(members[i + 1]) - now))
  end
end

local measured, trouble = pcall(use_lines)
if not measured then
  line('error', trouble)
end
declared_lines()
field_lines()
if aux then
  aux_lines()
end
return lines
