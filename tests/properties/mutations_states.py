"""Faults in what breakers and slots do, and in what every kind of limit shares."""

from __future__ import annotations

from tests.properties.mutations import Mutation

CIRCUIT = "include/circuit"
TRANSITIONS = "include/transitions"
SLOTS = "include/slots"
HOLDS = "include/holds"
CELLS = "include/cells"

STATES = (
    # ---- circuit breakers
    Mutation(
        "every worker probes at once",
        "circuit",
        CIRCUIT,
        "(cell.state == 'open' and 0 or cell.passed + cell.live)",
        "(cell.state == 'open' and 0 or cell.passed)",
        rare=True,
    ),
    Mutation(
        "calls go through a microsecond before the circuit may be probed",
        "circuit",
        CIRCUIT,
        "elseif cell.state == 'open' and cell.now < cell.open_until then",
        "elseif cell.state == 'open' and cell.now < cell.open_until - 1 then",
        rare=True,
    ),
    Mutation(
        "a circuit whose probes succeed never closes",
        "circuit",
        CIRCUIT,
        "if cell.passed >= cell.spec.half_open_calls then",
        "if cell.passed > cell.spec.half_open_calls then",
        rare=True,
    ),
    Mutation(
        "calls without an outcome use up the ration of probes for good",
        "circuit",
        CIRCUIT,
        "cell.live = redis.call('ZCOUNT', cell.aux, '(' .. text(cell.now), '+inf')",
        "cell.live = redis.call('ZCARD', cell.aux)",
        rare=True,
    ),
    Mutation(
        "a success does not end a row of failures",
        "circuit",
        CIRCUIT,
        "cell.streak = failed and cell.streak + 1 or 0",
        "cell.streak = failed and cell.streak + 1 or cell.streak",
        rare=True,
    ),
    Mutation(
        "jitter makes the pause shorter than was asked for",
        "circuit",
        TRANSITIONS,
        "pause = pause + math.floor(",
        "pause = pause - math.floor(",
        rare=True,
    ),
    Mutation(
        "pauses grow past their maximum",
        "circuit",
        TRANSITIONS,
        "math.max(spec.open_for, spec.max_open_for))",
        "math.huge)",
        rare=True,
    ),
    Mutation(
        "results of calls from before a transition count after it",
        "circuit",
        TRANSITIONS,
        "cell.state, cell.gen, cell.passed, cell.streak = state, cell.gen + 1, 0, 0",
        "cell.state, cell.gen, cell.passed, cell.streak = state, cell.gen, 0, 0",
    ),
    Mutation(
        "two changes of a circuit have the same number, and listeners drop one",
        "circuit",
        TRANSITIONS,
        "cell.seq, cell.changed = cell.seq + 1, cell.now",
        "cell.changed = cell.now",
    ),
    Mutation(
        "whoever subscribes late is not told of an open circuit",
        "circuit",
        CELLS,
        "if event.type:sub(1, 8) == 'circuit:' then",
        "if false then",
    ),
    Mutation(
        "a result from before an operator stepped in counts after it",
        "circuit",
        "force",
        "cell.forced, cell.gen, cell.dirty = state, cell.gen + 1, true",
        "cell.forced, cell.dirty = state, true",
    ),
    # ---- slots
    Mutation(
        "who takes several slots is counted as one",
        "slots",
        SLOTS,
        "cell.in_use = cell.held_count + cell.extra",
        "cell.in_use = cell.held_count",
    ),
    Mutation(
        "a release frees more than was taken",
        "slots",
        SLOTS,
        "cell.extra = math.max(0, cell.extra - (weight - 1))",
        "cell.extra = math.max(0, cell.extra - weight)",
    ),
    Mutation(
        "slots of those who died are never freed",
        "slots",
        HOLDS,
        "cell.held_count = count - #cell.expired",
        "cell.held_count = count",
    ),
    Mutation(
        "a lease that has ended comes back to life",
        "slots",
        HOLDS,
        "or not ends or ends <= cell.now then\n    return nil\n  end\n  ends",
        "or not ends then\n    return nil\n  end\n  ends",
        rare=True,
    ),
    # ---- what all of them share
    Mutation(
        "state is forgotten while it counts",
        "gcra",
        CELLS,
        "local ttl_ms = math.ceil((ttl_us + slack_us) / 1000)\n",
        "local ttl_ms = math.ceil((ttl_us + slack_us) / 2000)\n",
    ),
    Mutation(
        "state is kept for ever",
        "fixed_window",
        CELLS,
        "redis.call('PEXPIRE', cell.key, text(ttl_ms))",
        "redis.call('PERSIST', cell.key)",
    ),
    Mutation(
        "a server whose clock is behind lets time run backwards",
        "quota",
        CELLS,
        "cell.now = math.max(now_us, at)",
        "cell.now = now_us",
    ),
    Mutation(
        "a refusal is written down",
        "sliding_window",
        "admit",
        "if cell.redeclared and not cell.corrupt and",
        "if not cell.corrupt and",
    ),
    Mutation(
        "a refusal by one policy costs what the others would have charged",
        "together",
        "admit",
        "if admitted and verdict.ok then",
        "if verdict.ok then",
    ),
    Mutation(
        "a policy that only watches refuses",
        "gcra",
        "include/judge",
        "(op[4] ~= 1 or verdict.reason == 'window_unknown')",
        "true",
    ),
    Mutation(
        "a request that is asked again with another window is charged twice",
        "calendar",
        "include/judge",
        "(op[4] ~= 1 or verdict.reason == 'window_unknown')",
        "op[4] ~= 1",
        rare=True,
    ),
    Mutation(
        "what is left is told as if the request had been admitted",
        "together",
        "include/judge",
        "cell.kind.decide(cell, 0, op[5], luck)",
        "cell.kind.decide(cell, op[3], op[5], luck)",
    ),
    Mutation(
        "what a later policy vetoes stays charged",
        "fixed_window",
        "settle",
        "actual = undo and 0 or part[4]",
        "actual = part[4]",
    ),
    Mutation(
        "work that died is charged, although that was to be refunded",
        "quota",
        "settle",
        "unknown = part[5] == 1 and not undo",
        "unknown = false",
        rare=True,
    ),
    Mutation(
        "a reset leaves leases behind",
        "slots",
        "reset",
        "  redis.call('DEL', aux)\n",
        "",
    ),
    Mutation(
        "a changed limit forgets what was left",
        "gcra",
        "include/change",
        "return math.max(0, is - math.max(0, was - used))",
        "return used",
        rare=True,
    ),
)
