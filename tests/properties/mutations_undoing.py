"""Faults in undoing what a later policy vetoes."""

from __future__ import annotations

from tests.properties.mutations import Mutation

RESTORING = "include/restoring"
UNDOING = "include/undoing"

UNDOING_FAULTS = (
    Mutation(
        "an undo goes back to what was before others had taken theirs",
        "fixed_window",
        RESTORING,
        "if fields[name] ~= value then",
        "if false then",
    ),
    Mutation(
        "a state stays that was made for what was vetoed",
        "fixed_window",
        RESTORING,
        "    redis.call('DEL', key)\n",
        "    redis.call('PTTL', key)\n",
    ),
    Mutation(
        "a slot stays taken by what was vetoed",
        "slots",
        RESTORING,
        "    redis.call('ZREM', aux, kept.member, unpack(kept.came))\n",
        "",
    ),
    Mutation(
        "a limit tells that somebody was vetoed",
        "sliding_window",
        UNDOING,
        "      kept.before[name] = before.fields[name] or false\n",
        "      kept.before[name] = name ~= 'at' and (before.fields[name] or false) or nil\n",
    ),
    Mutation(
        "an undo that is sent twice is done twice",
        "sliding_window",
        RESTORING,
        "  if at and at < tonumber(kept.after.at) then\n    return true\n  end\n  for",
        "  for _ in pairs(kept.before) do\n    return false\n  end\n  for",
        rare=True,
    ),
    Mutation(
        "leases that have ended are gone after a veto, as if something had been admitted",
        "slots",
        RESTORING,
        "redis.call('ZADD', aux, kept.lost[i + 1], kept.lost[i])",
        "redis.call('ZSCORE', aux, kept.lost[i])",
        rare=True,
    ),
    Mutation(
        "that a circuit is half open is taken back after everybody was told",
        "circuit",
        UNDOING,
        "if not cell.dirty or cell.told ~= before.told",
        "if not cell.dirty",
        rare=True,
    ),
    Mutation(
        "those that travel together are undone only from the last to the first",
        "fixed_window",
        RESTORING,
        "local more = #left > 0 and #left < #waiting",
        "local more = false",
        rare=True,
    ),
)
