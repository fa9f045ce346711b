"""Faults in what rates and quotas do."""

from __future__ import annotations

from tests.properties.mutations import Mutation

GCRA = "include/gcra"
RULE = "include/gcra_rule"
BUCKETS = "include/buckets"
WINDOW = "include/sliding_window"
LOG = "include/sliding_log"
FIXED = "include/fixed_window"
QUOTA = "include/quota"
ROLLING = "include/rolling"
CELLS = "include/cells"

LIMITS = (
    # ---- rates
    Mutation(
        "a burst lets one request too many pass",
        "gcra",
        RULE,
        "local over = after - spec.burst * spec.num",
        "local over = after - (spec.burst + 1) * spec.num",
    ),
    Mutation(
        "fractions of a microsecond are lost, so that the rate creeps up",
        "gcra",
        RULE,
        "return now + ahead, math.floor(units - ahead * den)",
        "return now + ahead, 0",
    ),
    Mutation(
        "a late refund gives back what time has given back already",
        "gcra",
        GCRA,
        "math.min(-delta * spec.num, math.max(0, unearned), units)",
        "math.min(-delta * spec.num, units)",
        rare=True,
    ),
    Mutation(
        "retry_after is too short by a microsecond",
        "gcra",
        RULE,
        "math.ceil(over / spec.den),",
        "math.max(1, math.ceil(over / spec.den) - 1),",
    ),
    Mutation(
        "what is settled twice is charged twice",
        "gcra",
        "include/settled",
        "if cell.corrupt or (ends and ends > cell.now) then",
        "if cell.corrupt then",
    ),
    Mutation(
        "the oldest slice is left out, so that more than the limit passes within the window",
        "sliding_window",
        BUCKETS,
        "total = total + amount * (cell.width - (cell.now - current * cell.width))",
        "total = total + 0",
    ),
    Mutation(
        "a debt that is told late is never charged",
        "sliding_window",
        WINDOW,
        "      add_to_bucket(cell, bucket_of(cell), delta)\n",
        "      add_to_bucket(cell, bucket_of(cell), 0)\n",
        rare=True,
    ),
    Mutation(
        "what has left the log still counts, so that it fills up for good",
        "sliding_log",
        LOG,
        "cell.used = cell.used - weight_of(member)",
        "cell.used = cell.used - 0 * weight_of(member)",
    ),
    Mutation(
        "whoever waits for a log is told to wait for one entry too many",
        "sliding_log",
        LOG,
        "if freed >= amount then",
        "if freed > amount then",
    ),
    Mutation(
        "a log whose window was lengthened is forgotten, and its sum is not",
        "sliding_log",
        CELLS,
        "if #adds > 0 or (cell.redeclared and cell.reaped) then",
        "if #adds > 0 then",
        rare=True,
    ),
    Mutation(
        "a window still counts in the first microsecond of the next one",
        "fixed_window",
        FIXED,
        "if cell.now < start_was + per_was then",
        "if cell.now <= start_was + per_was then",
    ),
    Mutation(
        "a refund of the last window makes room in this one",
        "fixed_window",
        FIXED,
        "if settlement.hold[1] == cell.start then",
        "if true then",
        rare=True,
    ),
    # ---- quotas
    Mutation(
        "what nobody settled is free, although it was to be charged",
        "quota",
        QUOTA,
        "cell.used = cell.used + cell.expired_amount",
        "cell.used = cell.used + 0",
        rare=True,
    ),
    Mutation(
        "an overage that was to be clipped is charged in full",
        "quota",
        QUOTA,
        "actual = math.min(actual, room)",
        "actual = math.max(actual, 0)",
        rare=True,
    ),
    Mutation(
        "a debt is forgiven when its window ends",
        "quota",
        QUOTA,
        "cell.warned, cell.limit_was = debt, 0, carry, 0, nil",
        "cell.warned, cell.limit_was = 0, 0, carry, 0, nil",
    ),
    Mutation(
        "more rolls over than was declared",
        "quota",
        QUOTA,
        "local carry = math.min(spec.rollover, math.max(0, limit - used))",
        "local carry = math.max(0, limit - used)",
    ),
    Mutation(
        "a threshold is told over and over",
        "quota",
        "include/thresholds",
        "cell.warned, cell.seq = index, cell.seq + 1",
        "cell.seq = cell.seq + 1",
    ),
    Mutation(
        "a reservation of an earlier window can be settled in this one",
        "calendar",
        QUOTA,
        "if cell.corrupt or cell.since ~= settlement.hold[1] or cell.now >= cell.ends",
        "if cell.corrupt",
        rare=True,
    ),
    Mutation(
        "a settlement corrects another slice than the one that was charged",
        "rolling",
        ROLLING,
        "add_to_bucket(cell, index, actual - settlement.reserved)",
        "add_to_bucket(cell, bucket_of(cell), actual - settlement.reserved)",
    ),
    Mutation(
        "what nobody settled stays charged, although it was to come back",
        "rolling",
        ROLLING,
        "cell.buckets[index] = math.max(0, cell.buckets[index] - amount)\n        end\n      end\n"
        "    end\n    if was",
        "cell.buckets[index] = cell.buckets[index]\n        end\n      end\n    end\n    if was",
        rare=True,
    ),
)
