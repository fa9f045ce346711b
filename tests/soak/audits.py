"""The store's own counters beside what the journals say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tests.soak.ledger import undone
from tests.soak.load import BY_NAME, LEASE, MICROS, PREFIX, SUBJECTS, UNDER

if TYPE_CHECKING:
    from tests.servers import RealServer
    from tests.soak.chapters import Chapters, Episodes
    from tests.soak.findings import Invariant
    from tests.soak.ledger import Call, Ledger

#: Quotas that never come near their limit, and so count exactly what was admitted.
COUNTED = ("p-budget", "p-rolling", "returned")
SLOTS = ("p-slots", "held", "c-slots")
_MOMENT_US = 100_000
LEASED = (*SLOTS, *COUNTED)
LEASE_US = int(LEASE * MICROS)
#: Seconds after which what was under way at an audit is in the journals.
SETTLES_IN = 4 * LEASE + 3


@dataclass(frozen=True, slots=True)
class Audit:
    """What the server had at one moment, read in one transaction.

    `live` are the permits that hold a lease, and until when, by policy and subject.
    """

    at: int
    hashes: dict[tuple[str, str], dict[str, str]]
    live: dict[tuple[str, str], list[tuple[str, int]]]


def key(family: str, policy: str, subject: str) -> str:
    return f"{PREFIX}{family}:{policy}:{subject}"


def read(server: RealServer, *, flush: bool = False) -> Audit:
    """Read all counters at once, and with `flush` have everything forgotten in the same moment."""
    quotas = [(policy, who) for policy in COUNTED for who in SUBJECTS]
    leased = [(policy, who) for policy in LEASED for who in SUBJECTS]
    pipe = server.control.pipeline(transaction=True)
    pipe.time()
    for policy, who in quotas:
        pipe.hgetall(key("quota", policy, who))
    for policy, who in leased:
        family = "slots.leases" if policy in SLOTS else "quota.holds"
        pipe.zrange(key(family, policy, who), 0, -1, withscores=True)
    if flush:
        pipe.flushall()
    (second, micro), *rest = cast("list[Any]", pipe.execute())
    at = second * MICROS + micro
    hashes = dict(zip(quotas, rest, strict=False))
    rows = dict(zip(leased, rest[len(quotas) :], strict=False))
    live = {
        place: [(member.partition(":")[0], int(ends)) for member, ends in members if ends > at]
        for place, members in rows.items()
    }
    return Audit(at, hashes, live)


def counted(policy: str, fields: dict[str, str]) -> int:
    """Get what a quota's state has counted, reservations included."""
    if policy == "p-rolling":
        return sum(int(value) for name, value in fields.items() if name[0] == "b")
    return int(fields.get("used", 0)) + int(fields.get("held", 0))


def expected(
    policy: str,
    who: str,
    calls: list[Call],
    until: int,
    began: int,
    ledger: Ledger,
    episodes: Episodes,
) -> tuple[int, int, int]:
    """Get what it must have counted at least, and at most, and how much of that is in doubt."""
    refunds = BY_NAME[policy].unsettled == "refund"
    least = most = doubt = 0
    for call in calls:
        if call.who != who or call.asked > until:
            continue
        if call.admitted:
            if began < call.at <= until:
                for hold in call.holds:
                    if hold.policy == policy:
                        charge = call.charge(hold, refunds=refunds, exact=True, until=until)
                        least, most = least + charge.least, most + charge.most
            continue
        ended = call.done or ledger.killed.get(call.worker, 1 << 62)
        if ended <= began:
            continue
        under_way = call.done == 0 or call.done > until
        in_doubt = call.doubt or under_way
        if undone(call) and episodes.excused(call.worker, call.asked, call.done):
            # What was to be given back may have met the fault as well; then the lease ends it.
            in_doubt = True
        if in_doubt and not call.unsent:
            doubt += call.tokens
    return least, most + doubt, doubt


def compare(
    audit: Audit, ledger: Ledger, chapters: Chapters, episodes: Episodes, found: Invariant
) -> list[str]:
    """Hold one audit against the journals; get a line of figures for each counter."""
    began, _ = chapters.span(chapters.of(audit.at - 1))
    lines: list[str] = []
    for (policy, who), fields in audit.hashes.items():
        kind = BY_NAME[policy].on.event_type
        calls = list(ledger.after(began, kind))
        value = counted(policy, fields)
        least, most, doubt = expected(policy, who, calls, audit.at, began, ledger, episodes)
        text = f"{policy} {who}: {value:,}, by the journals {least:,} to {most:,}"
        found.check(least <= value <= most, text)
        lines.append(f"{text} ({doubt:,} in doubt)")
    return lines


def compare_leases(
    audit: Audit, ledger: Ledger, episodes: Episodes, full: Invariant, leaked: Invariant
) -> None:
    """See that whoever holds a lease in the store is somebody who should."""
    # What nobody knows of was taken by a call in doubt, and never renewed.
    doubtful = [
        (call, latest)
        for kind, policies in UNDER.items()
        if not policies.isdisjoint(LEASED)
        for call in ledger.after(audit.at - LEASE_US, kind)
        if (latest := _may_hold_until(call, audit.at, ledger, episodes))
    ]
    for (policy, who), holders in audit.live.items():
        if policy in SLOTS:
            limit = BY_NAME[policy].limit
            text = f"{policy} {who}: {len(holders)} live leases of {limit}"
            full.check(len(holders) <= limit, text)
        for holder, ends in holders:
            call = ledger.permits.get(holder)
            if call is None:
                taken = ends - LEASE_US
                known = any(
                    one.asked <= taken <= latest
                    for one, latest in doubtful
                    if one.who == who and policy in UNDER[one.kind]
                )
                text = f"{policy} {who}: {holder} has a lease of {taken}, and no call took it"
                leaked.check(known, text)
            elif (call.statuses or {}).get(policy) == "settled" and call.settled <= audit.at:
                leaked.check(False, f"{policy} {who} is held after it was settled: {call}")


def _may_hold_until(call: Call, at: int, ledger: Ledger, episodes: Episodes) -> int:
    """Get until when a call may yet have taken something that nobody knows of, 0 for never."""
    if call.admitted or call.unsent:
        return 0
    if not call.done:
        killed = ledger.killed.get(call.worker)
        return killed + MICROS if killed else 1 << 62
    if not call.doubt and not undone(call):
        return 0
    around = episodes.during(call.asked, call.done)
    # What the fault held up comes to the server when it ends.
    ends = max((one.ended or 1 << 62 for one in around if one.excuses(call.worker)), default=0)
    if call.doubt:
        # What had been sent when its caller was cancelled is taken, and given back, a moment later.
        return max(call.done + _MOMENT_US, ends)
    # What is vetoed last of all has it until it is given back, which is before the answer.
    return max(call.done, ends) if call.done >= at else ends
