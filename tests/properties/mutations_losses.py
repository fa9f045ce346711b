"""Faults in how subjects begin once everything has been lost."""

from __future__ import annotations

from tests.properties.mutations import Mutation

COLD = "include/cold"
EPOCH = "include/epoch"

LOSSES = (
    Mutation(
        "what is lost is as if it had never been used",
        "gcra",
        "include/cells",
        "      cold.begin(cell)\n",
        "",
    ),
    Mutation(
        "a loss is never noticed by a decision",
        "fixed_window",
        EPOCH,
        "local is_lost = known ~= '' or raw.err or raw[1]",
        "local is_lost = raw.err or raw[1]",
    ),
    Mutation(
        "every decision takes the loss for one of its own moment, and nothing is ever free again",
        "gcra",
        "admit",
        "cold.look(asked[4], nonce, true)",
        "cold.look(asked[4], nonce, false)",
        rare=True,
    ),
    Mutation(
        "a peek writes down that everything was lost",
        "sliding_window",
        "peek",
        "cold.look(asked[4], nonce, false)",
        "cold.look(asked[4], nonce, true)",
        rare=True,
    ),
    Mutation(
        "a bucket is given back a burst twice after a loss",
        "gcra",
        COLD,
        "gcra_moment(at, spec.burst * spec.num, spec.den)",
        "gcra_moment(at, spec.num, spec.den)",
    ),
    Mutation(
        "a window that was lost is full from when somebody looks",
        "sliding_window",
        COLD,
        "cell.buckets[math.floor(at / cell.width)] = cell.spec.limit",
        "cell.buckets[math.floor(cell.now / cell.width)] = cell.spec.limit",
        rare=True,
    ),
    Mutation(
        "whoever waits for a log that was lost is told to wait as if it had just filled up",
        "sliding_log",
        "include/sliding_log",
        "return cell.lost_at + cell.spec.per - cell.now",
        "return cell.spec.per",
        rare=True,
    ),
    Mutation(
        "a quota that was lost is spent in the windows after it as well",
        "quota",
        COLD,
        "cell.used = at >= cell.start and cell.spec.limit or 0",
        "cell.used = cell.spec.limit",
        rare=True,
    ),
    Mutation(
        "a quota of which a part is over begins with none of it used",
        "calendar",
        COLD,
        "local part = cell.spec.limit * math.max(0, at - cell.start)",
        "local part = 0",
    ),
    Mutation(
        "what was used evenly comes back all at once",
        "rolling",
        COLD,
        "cell.buckets[newest - i + 1] = (cell.spec.limit - rest) / count + extra - before",
        "cell.buckets[newest] = cell.spec.limit",
    ),
    Mutation(
        "slots that were lost are free at once",
        "slots",
        COLD,
        "cell.in_use, cell.extra, cell.till = limit, limit - 1, ends",
        "cell.in_use, cell.extra, cell.till = 0, 0, ends",
        rare=True,
    ),
)
