-- cells: every key is read once a call, changed in memory, and written once after all is decided.
--
-- Redis undoes nothing when a script fails half way, so no write comes before the last decision.
-- A cell is one policy's state for one subject: a hash, and beside it a sorted set (the aux key)
-- for leases, holds or a log. `kind.load` turns stored fields into numbers, `kind.save` back.
-- @include clock
-- @include numbers
-- @include denied
--
-- DEFINES specs          decoded declarations by their text
-- DEFINES cold           what include/cold puts in here, where a call needs it
-- DEFINES subjects       what include/subjects puts in here, where a call needs it
-- DEFINES decode_spec(text, override)  the declaration with a subject's override laid over it
-- DEFINES open_cell(kind, key, aux, spec_text, override)  the cell, `corrupt` where unreadable
-- DEFINES add_member(cell, score, member)   enter a member in the aux set at the flush
-- DEFINES drop_member(cell, member)         take a member out of the aux set at the flush
-- DEFINES clear_members(cell)               empty the aux set at the flush
-- DEFINES member_score(cell, member)        score of a member as of now, pending changes included
-- DEFINES emit(cell, event)                 publish an event about this cell at the flush; cell.told
--                                           counts them
-- DEFINES fields_of(cell)                   what the flush will write: fields, and the lives (us) of
--                                           both keys
-- DEFINES flush(channel, wake, circuits, denied, even_when_full)  write every changed cell, publish
--                                           every event, note in the circuits key which circuits
--                                           changed, and wake those who wait for what has been
--                                           freed, or by the denied key keep a denial of it;
--                                           even_when_full: also where memory is at its maximum
--
-- Every state has the fields v (schema), at (us, last change), spec, override and queue (us, until
-- when somebody is known to wait).
local SCHEMA = '1'
local DAY_US = 86400 * 1000000
local specs, cells, order, events, cold, subjects = {}, {}, {}, {}, {}, {}

local function decode_spec(spec_text, override)
  local name = override and (spec_text .. '\n' .. override) or spec_text
  local spec = specs[name]
  if spec then
    return spec
  end
  spec = cjson.decode(spec_text)
  if override then
    local readable, fields = pcall(cjson.decode, override)
    fields = readable and type(fields) == 'table' and fields or {}
    -- A burst that was not set apart from the limit follows it.
    local follows = not spec.burst or spec.burst == spec.limit
    spec.limit = whole(fields.limit)
    spec.burst = whole(fields.burst) or (follows and spec.limit) or spec.burst
    if not spec.limit or spec.limit < 1 or (spec.burst and spec.burst < 1) then
      spec.unreadable = true
    end
  end
  spec.text, spec.override = spec_text, override
  specs[name] = spec
  return spec
end

-- With no spec_text (settling), the declaration is the one that the stored state was made under.
local function open_cell(kind, key, aux, spec_text, override)
  local cell = cells[key]
  if cell then
    return cell
  end
  cell = { key = key, aux = aux, kind = kind, raw = {}, adds = {}, drops = {}, now = now_us }
  cells[key] = cell
  order[#order + 1] = cell
  local flat = redis.pcall('HGETALL', key)
  if flat.err then
    cell.corrupt = true
    return cell
  end
  for i = 1, #flat, 2 do
    cell.raw[flat[i]] = flat[i + 1]
  end
  cell.absent, cell.queue_until = #flat == 0, 0
  local was
  if not cell.absent then
    local at = whole(cell.raw.at)
    if cell.raw.v ~= SCHEMA or not at or not cell.raw.spec then
      cell.corrupt = true
      return cell
    end
    -- A promoted replica's clock may be behind; time never runs backwards for one key.
    cell.now = math.max(now_us, at)
    cell.queue_until = whole(cell.raw.queue) or 0
    local readable, declared = pcall(decode_spec, cell.raw.spec, cell.raw.override)
    if not readable or declared.unreadable or type(declared.kind) ~= 'string' then
      cell.corrupt = true
      return cell
    end
    was = declared
    if not spec_text and was.kind ~= kind.name then
      -- Another algorithm's by now; whoever asks for that one opens it anew.
      cells[key], order[#order], cell.spec = nil, nil, was
      return cell
    end
  end
  cell.spec = spec_text and decode_spec(spec_text, override) or was
  if cell.spec and cell.spec.unreadable then
    cell.corrupt = true
    return cell
  end
  if was and was.kind ~= cell.spec.kind then
    -- Another algorithm under the same name: nothing of the old state can be read by it.
    cell.absent, cell.cleared, was = true, true, nil
  end
  if cell.spec then
    -- Whatever it stumbles over, other subjects of this call are none the worse for it.
    cell.redeclared = was ~= nil and was ~= cell.spec
    local loaded, sound = pcall(kind.load, cell, cell.redeclared and was or nil)
    cell.corrupt = not (loaded and sound)
    if cold.lost_us and cell.absent and cell.spec.cold and not (cell.cleared or cell.corrupt) then
      cold.begin(cell)
    end
  end
  return cell
end

local function add_member(cell, score, member)
  cell.adds[member], cell.newest = score, member
  cell.drops[member] = nil
  cell.dirty = true
end

local function drop_member(cell, member)
  cell.adds[member] = nil
  cell.drops[member] = true
  cell.dirty = true
end

local function clear_members(cell)
  cell.adds, cell.drops, cell.cleared, cell.dirty = {}, {}, true, true
end

local function member_score(cell, member)
  if cell.adds[member] then
    return cell.adds[member]
  end
  if cell.cleared or cell.drops[member] then
    return nil
  end
  local score = redis.pcall('ZSCORE', cell.aux, member)
  if type(score) == 'table' then
    cell.corrupt = true
    return nil
  end
  return score and tonumber(score)
end

local function emit(cell, event)
  event.v, event.key, event.at_us = SCHEMA, cell.key, text(cell.now)
  event.policy, event.subject = cell.key:match('^[^{]*{[^}]*}:[^:]*:([^:]*):(.*)$')
  events[#events + 1] = event
  cell.told = (cell.told or 0) + 1
end

local function chunked(command, key, list)
  for first = 1, #list, 1000 do
    redis.call(command, key, unpack(list, first, math.min(first + 999, #list)))
  end
end

local function fields_of(cell)
  local fields, ttl_us, aux_ttl_us = cell.kind.save(cell)
  fields.v, fields.at = SCHEMA, text(cell.now)
  fields.spec, fields.override = cell.spec.text, cell.spec.override
  if cell.queue_until > cell.now then
    fields.queue = text(cell.queue_until)
    ttl_us = math.max(ttl_us, cell.queue_until - cell.now)
  end
  return fields, ttl_us, aux_ttl_us
end

local function write_hash(cell)
  local fields, ttl_us, aux_ttl_us = fields_of(cell)
  local set, gone = {}, {}
  for name, value in pairs(fields) do
    if cell.raw[name] ~= value then
      set[#set + 1] = name
      set[#set + 1] = value
    end
  end
  for name in pairs(cell.raw) do
    if fields[name] == nil then
      gone[#gone + 1] = name
    end
  end
  if #set > 0 then
    chunked('HSET', cell.key, set)
  end
  if #gone > 0 then
    chunked('HDEL', cell.key, gone)
  end
  -- A second of slack, and what the server's clock is behind: a key never goes before the
  -- arithmetic says that it holds nothing.
  local slack_us = 1000000 + cell.now - now_us
  local ttl_ms = math.ceil((ttl_us + slack_us) / 1000)
  redis.call('PEXPIRE', cell.key, text(ttl_ms))
  if subjects.note and cell.spec.max_subjects then
    subjects.note(cell, ttl_ms)
  end
  return text(aux_ttl_us and math.ceil((aux_ttl_us + slack_us) / 1000) or ttl_ms)
end

local function write_members(cell, ttl_ms)
  if cell.cleared then
    redis.call('DEL', cell.aux)
  end
  local drops, adds = {}, {}
  for member in pairs(cell.drops) do
    drops[#drops + 1] = member
  end
  for member, score in pairs(cell.adds) do
    adds[#adds + 1] = text(score)
    adds[#adds + 1] = member
  end
  if #drops > 0 then
    chunked('ZREM', cell.aux, drops)
  end
  if cell.reaped then
    redis.call('ZREMRANGEBYSCORE', cell.aux, '-inf', text(cell.reaped))
  end
  if #adds > 0 then
    chunked('ZADD', cell.aux, adds)
  end
  -- Only with a new member: what was entered before lives as long as it was to live then. Or where
  -- the state counts what is in here, and by another declaration does so for longer.
  if #adds > 0 or (cell.redeclared and cell.reaped) then
    redis.call('PEXPIRE', cell.aux, ttl_ms)
  end
end

-- Whoever subscribes finds here which circuits to look at, without walking all keys.
local function note_circuit(circuits, key, at_us)
  -- The change itself is written by now: an index that is no sorted set must not make it an error.
  redis.pcall('ZADD', circuits, at_us, key)
  redis.pcall('ZREMRANGEBYSCORE', circuits, '-inf', text(tonumber(at_us) - DAY_US))
  redis.pcall('ZREMRANGEBYRANK', circuits, '0', '-10001')
  redis.pcall('PEXPIRE', circuits, text(DAY_US / 1000))
end

local function write_line(line, now)
  local gone, order_adds, alive_adds = {}, {}, {}
  for waiter in pairs(line.gone) do
    gone[#gone + 1] = waiter
  end
  for waiter, ticket in pairs(line.come) do
    order_adds[#order_adds + 1] = text(ticket)
    order_adds[#order_adds + 1] = waiter
    alive_adds[#alive_adds + 1] = text(now + line.lease)
    alive_adds[#alive_adds + 1] = waiter
  end
  if #gone > 0 then
    chunked('ZREM', line.order, gone)
    chunked('ZREM', line.alive, gone)
  end
  if #order_adds > 0 then
    chunked('ZADD', line.order, order_adds)
    chunked('ZADD', line.alive, alive_adds)
    local ttl_ms = text(math.ceil(line.lease / 1000) + 1000)
    redis.call('PEXPIRE', line.order, ttl_ms)
    redis.call('PEXPIRE', line.alive, ttl_ms)
  end
end

-- Redis at maxmemory refuses a script's first write if that could take memory, and none after it.
-- So what gives back, which must not fail then, begins with a write that takes none.
local function flush(channel, wake, circuits, denied, even_when_full)
  for _, cell in ipairs(order) do
    if cell.dirty then
      if even_when_full then
        redis.call('PEXPIRE', cell.key, text(DAY_US / 1000))
        even_when_full = false
      end
      write_members(cell, write_hash(cell))
      if cell.line then
        write_line(cell.line, cell.now)
      end
    end
    if cell.freed and (cell.queue_until > cell.now or denied and denial_kept(denied, cell.key)) then
      redis.call('PUBLISH', wake, cell.key)
    end
  end
  if subjects.write then
    subjects.write()
  end
  for _, event in ipairs(events) do
    if event.type:sub(1, 8) == 'circuit:' then
      note_circuit(circuits, event.key, event.at_us)
    end
    redis.call('PUBLISH', channel, cjson.encode(event))
  end
end
