-- circuit: a breaker whose window, probes and state all workers share.
--
-- An admission leaves a ticket in the aux set until it is settled or its lease ends; while the
-- circuit is half open the tickets are the probes, and their number is the ration.
-- @include makers
-- @include numbers
-- @include cells
-- @include verdicts
-- @include outcomes
-- @include transitions
--
-- SPEC    failure_rate, minimum_calls, window (us) or calls (count), consecutive, slow_call (us),
--         slow_rate, open_for, max_open_for (us), jitter (share), half_open_calls, lease (us),
--         reporters (distinct workers that must have failed), ramp_up (us)
-- FIELDS  state  forced  gen  seq  open_until (us)  opens (in a row)  passed (probes that
--         succeeded)  streak (failures in a row)  closed_at (us)  changed (us)
--         r:<worker> (its last failure)
-- AUX     tickets: member <permit>, score the end of its lease
-- HOLDS   generation (0 while disabled)  time of admission
function makers.circuit()
  local circuit = {}
  -- A call may take longer than a probe's lease; its result still counts for this long.
  local TICKET_US = 3600 * 1000000
  local MAX_REPORTERS = 64
  local FORCED_US = 366 * 86400 * 1000000

  function circuit.load(cell, was)
    local raw = cell.raw
    cell.tickets = cell.cleared and 0 or redis.pcall('ZCARD', cell.aux)
    if type(cell.tickets) ~= 'number' then
      return false
    end
    cell.reporters = {}
    if cell.absent then
      cell.state, cell.forced, cell.gen, cell.seq = 'closed', '', now_us, now_us
      cell.open_until, cell.opens, cell.passed, cell.streak, cell.closed_at = 0, 0, 0, 0, 0
      cell.live, cell.changed = 0, cell.now
      return load_outcomes(cell)
    end
    cell.state, cell.forced = raw.state, raw.forced
    cell.gen, cell.seq = whole(raw.gen), whole(raw.seq)
    cell.open_until, cell.opens = whole(raw.open_until), whole(raw.opens)
    cell.passed, cell.streak = whole(raw.passed), whole(raw.streak)
    cell.closed_at, cell.changed = whole(raw.closed_at), whole(raw.changed)
    for name, value in pairs(raw) do
      if name:sub(1, 2) == 'r:' then
        cell.reporters[name:sub(3)] = whole(value) or 0
      end
    end
    local known = cell.state == 'closed' or cell.state == 'open' or cell.state == 'half_open'
    local forced = cell.forced == '' or cell.forced == 'forced_open' or cell.forced == 'disabled'
    if not (known and forced and cell.gen and cell.seq and cell.open_until and cell.opens
            and cell.passed and cell.streak and cell.closed_at and cell.changed) then
      return false
    end
    cell.live = 0
    if cell.state == 'half_open' and cell.tickets > 0 then
      cell.live = redis.call('ZCOUNT', cell.aux, '(' .. text(cell.now), '+inf')
    end
    -- A ration that was lowered below what has passed leaves room for one more probe.
    cell.passed = math.min(cell.passed, cell.spec.half_open_calls - 1)
    if not load_outcomes(cell) then
      return false
    end
    if was and was.window ~= cell.spec.window then
      forget_outcomes(cell)
    end
    return true
  end

  function circuit.save(cell)
    local spec = cell.spec
    local fields = {
      state = cell.state, forced = cell.forced, gen = text(cell.gen), seq = text(cell.seq),
      open_until = text(cell.open_until), opens = text(cell.opens), passed = text(cell.passed),
      streak = text(cell.streak), closed_at = text(cell.closed_at), changed = text(cell.changed),
    }
    for worker, at in pairs(cell.reporters) do
      fields['r:' .. worker] = text(at)
    end
    save_outcomes(cell, fields)
    local open_us = math.max(0, cell.open_until - cell.now)
                    + 2 * math.max(spec.open_for, spec.max_open_for)
    local ttl_us = math.max(TICKET_US, open_us, spec.window or 0, spec.lease, spec.ramp_up)
    return fields, cell.forced ~= '' and FORCED_US or 2 * ttl_us
  end

  local function unknown(reason, wait_us)
    return refuses(reason, NEVER, NEVER, wait_us, wait_us)
  end

  -- Microseconds until so many probes' leases have ended, and one more.
  local function lease_end_after(cell, others)
    local ends = {}
    for _, score in pairs(cell.adds) do
      ends[#ends + 1] = score
    end
    if not cell.cleared then
      local stored = redis.call('ZRANGEBYSCORE', cell.aux, '(' .. text(cell.now), '+inf',
                                'WITHSCORES', 'LIMIT', '0', text(others + 1))
      for i = 2, #stored, 2 do
        if not cell.adds[stored[i - 1]] then
          ends[#ends + 1] = tonumber(stored[i])
        end
      end
    end
    table.sort(ends)
    return (ends[others + 1] or cell.now + cell.spec.lease) - cell.now
  end

  local function decide_closed(cell, luck)
    local ramp_up = cell.spec.ramp_up
    if ramp_up > 0 and cell.closed_at > 0 and cell.now < cell.closed_at + ramp_up then
      -- Admitted share grows from a tenth to all; `luck` says where this request falls.
      local turn = math.max(0, math.ceil((luck - 100000) * ramp_up / 900000))
      if cell.now < cell.closed_at + turn then
        return unknown('ramping_up', cell.closed_at + turn - cell.now)
      end
    end
    return admits(NEVER, NEVER, 0)
  end

  function circuit.decide(cell, cost, _, luck)
    if cell.forced == 'forced_open' then
      return unknown('forced_open', NEVER)
    elseif cell.forced == 'disabled' then
      return admits(NEVER, NEVER, 0)
    elseif cell.state == 'closed' then
      return decide_closed(cell, luck)
    elseif cell.state == 'open' and cell.now < cell.open_until then
      return unknown('circuit_open', cell.open_until - cell.now)
    end
    local ration = cell.spec.half_open_calls
    local left = ration - (cell.state == 'open' and 0 or cell.passed + cell.live)
    if left <= 0 then
      local wait_us = lease_end_after(cell, -left)
      return refuses('probes_in_use', ration, 0, wait_us, wait_us)
    elseif cost == 0 then
      return admits(ration, left, 0)
    end
    return admits(ration, left - 1, cell.spec.lease)
  end

  function circuit.take(cell, _, id)
    if cell.forced ~= '' then
      return { 0, 0 }
    end
    if cell.state == 'open' then
      to_half_open(cell)
    end
    local life = cell.spec.lease
    if cell.state == 'half_open' then
      cell.live = cell.live + 1
    else
      life = math.max(life, TICKET_US)
    end
    add_member(cell, cell.now + life, id)
    cell.reaped = cell.now
    return { cell.gen, cell.now }, cell.now + life
  end

  local function enough_reporters(cell)
    local count = 0
    local since = cell.spec.window and cell.now - cell.spec.window or 0
    for _, at in pairs(cell.reporters) do
      if at > since then
        count = count + 1
      end
    end
    return count >= cell.spec.reporters
  end

  local function note_reporter(cell, worker)
    local known, oldest = 0, nil
    for name, at in pairs(cell.reporters) do
      known = known + 1
      if not oldest or at < cell.reporters[oldest] then
        oldest = name
      end
    end
    if known >= MAX_REPORTERS and not cell.reporters[worker] then
      cell.reporters[oldest] = nil
    end
    cell.reporters[worker] = cell.now
  end

  local function trip_reason(cell)
    local spec = cell.spec
    local calls, failures, slow = tally(cell)
    if spec.consecutive and cell.streak >= spec.consecutive then
      return 'consecutive_failures'
    elseif calls < spec.minimum_calls then
      return nil
    elseif spec.failure_rate and failures >= spec.failure_rate * calls - 1e-9 and failures > 0 then
      return 'failure_rate'
    elseif spec.slow_rate and slow >= spec.slow_rate * calls - 1e-9 and slow > 0 then
      return 'slow_call_rate'
    end
    return nil
  end

  local function settle_closed(cell, settlement, failed, slow)
    record_outcome(cell, failed, slow)
    cell.streak = failed and cell.streak + 1 or 0
    if (failed or slow) and cell.spec.reporters > 1 then
      note_reporter(cell, settlement.worker)
    end
    local reason = trip_reason(cell)
    if reason and (cell.spec.reporters <= 1 or enough_reporters(cell)) then
      to_open(cell, reason, settlement.luck)
    end
  end

  local function settle_probe(cell, settlement, failed, slow)
    cell.live = math.max(0, cell.live - 1)
    if failed or (slow and cell.spec.slow_rate) then
      to_open(cell, failed and 'probe_failed' or 'probe_slow', settlement.luck)
      return
    end
    cell.passed = cell.passed + 1
    if cell.passed >= cell.spec.half_open_calls then
      to_closed(cell, 'probes_succeeded')
    end
  end

  function circuit.settle(cell, settlement)
    local gen, id = settlement.hold[1], settlement.id
    if gen == 0 then
      return 'settled'
    elseif gen ~= cell.gen then
      return 'stale'
    end
    local ends = member_score(cell, id)
    if cell.corrupt or not ends or ends <= cell.now then
      return 'stale'
    end
    drop_member(cell, id)
    if settlement.outcome == 'neutral' or settlement.undo then
      if cell.state == 'half_open' then
        cell.live = math.max(0, cell.live - 1)
      end
      return 'settled'
    end
    local failed = settlement.outcome == 'failure'
    local taken_us = cell.now - settlement.hold[2]
    local slow = cell.spec.slow_call and taken_us >= cell.spec.slow_call or false
    if cell.state == 'half_open' then
      settle_probe(cell, settlement, failed, slow)
    else
      settle_closed(cell, settlement, failed, slow)
    end
    return 'settled'
  end

  function circuit.renew(cell, id, _, hold)
    local ends = member_score(cell, id)
    if hold[1] == 0 then
      return cell.now + cell.spec.lease
    elseif cell.corrupt or hold[1] ~= cell.gen or not ends or ends <= cell.now then
      return nil
    end
    ends = math.max(ends, cell.now + cell.spec.lease)
    add_member(cell, ends, id)
    return ends
  end

  return circuit
end
