"""The invariants, checked over the whole ledger."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from stanchion import Concurrency, Quota, RateLimit
from tests.soak import bounds, circuits
from tests.soak.findings import Invariant
from tests.soak.ledger import UNAVAILABLE
from tests.soak.load import BY_NAME, DEADLINE, LEASE, MICROS, PROCESSES, UNWANTED, us
from tests.soak.plan import Fault

if TYPE_CHECKING:
    from tests.soak.bounds import Admission, Reached
    from tests.soak.chapters import Chapters, Episodes
    from tests.soak.ledger import Call, Hold, Ledger, Stall

#: Seconds beyond its bound that an answer may take, and the loop's own lateness.
SLACK = 0.25
LEASE_US, SLACK_US, DEADLINE_US = int(LEASE * MICROS), int(SLACK * MICROS), int(DEADLINE * MICROS)
#: What may veto each event while the store answers, besides the whim.
FULL: dict[str, set[str]] = {
    "soak:chain": {"limit_reached", "quota_exhausted", "no_free_slot", "circuit_open"}
    | {"probes_in_use", "queued"},
    "soak:gcra": {"limit_reached", "queued"},
    "soak:fixed": {"limit_reached"},
    "soak:sliding": {"limit_reached"},
    "soak:log": {"limit_reached"},
    "soak:aheadrate": {"limit_reached"},
    "soak:alone": {"limit_reached"},
    "soak:calendar": {"quota_exhausted"},
    "soak:rolling": {"quota_exhausted"},
    "soak:aheadquota": {"quota_exhausted"},
    "soak:held": {"no_free_slot", "queued"},
    "soak:provider": {"circuit_open", "probes_in_use"},
}
NEVER_UNAVAILABLE = {"soak:admitting", "soak:alone"}
Place = tuple[str, str, int]


def check(ledger: Ledger, chapters: Chapters, episodes: Episodes) -> list[Invariant]:
    """Check everything that the journals alone can tell."""
    return [
        *_limits(ledger, chapters),
        _slots(ledger, chapters),
        *circuits.check(ledger, chapters),
        _reasons(ledger, episodes),
        _unavailable(ledger, episodes),
        _answers(ledger),
        _stale(ledger, chapters, episodes),
        _recovered(episodes),
        _readable(ledger, episodes),
        Invariant(
            "nothing was raised, admitted or answered that never may be", broken=list(ledger.wrong)
        ),
    ]


def _limits(ledger: Ledger, chapters: Chapters) -> list[Invariant]:
    """Rates and quotas: the net amount of what was admitted."""
    kinds: dict[str, Invariant] = {}
    entries: defaultdict[Place, list[Admission]] = defaultdict(list)
    alone: defaultdict[tuple[str, str], list[Admission]] = defaultdict(list)
    for call in ledger.calls.values():
        for hold in call.holds:
            policy = BY_NAME[hold.policy]
            if not isinstance(policy, RateLimit | Quota):
                continue
            refunds = isinstance(policy, Quota) and policy.unsettled == "refund"
            least = call.charge(hold, refunds=refunds, exact=False, until=1 << 62).least
            if hold.local:
                # By the clock of its process; what may lie on either side of an edge is left out.
                if call.asked // us(policy.per) == call.done // us(policy.per):
                    alone[hold.policy, f"{hold.subject} in {call.worker}"].append(
                        (call.done, least)
                    )
            elif moment := _moment(call, hold, chapters):
                place = hold.policy, hold.subject, chapters.of(moment)
                entries[place].append((moment, least))
    tightest: dict[str, float] = {}
    for (name, subject, chapter), admitted in entries.items():
        kind, (most, limit) = _reached(name, sorted(admitted))
        found = kinds.setdefault(kind, Invariant(f"{kind} is never exceeded"))
        within = most <= limit + _tolerance(name)
        found.check(within, f"{name} {subject}, chapter {chapter}: {most:g} of {limit}")
        tightest[kind] = max(tightest.get(kind, 0.0), most / limit)
        found.figures = f"{tightest[kind]:.0%} of the limit reached at most"
    share = Invariant('on_outage="local" never admits more than its share')
    largest = 0.0
    for (name, where), admitted in alone.items():
        policy = BY_NAME[name]
        limit = policy.limit // PROCESSES
        most, _ = bounds.fixed_window(sorted(admitted), limit, us(policy.per))
        share.check(most <= limit, f"{name} {where}: {most:g} of {limit}")
        largest = max(largest, most / limit)
    admissions = sum(map(len, alone.values()))
    share.figures = f"{admissions:,} admissions, {largest:.0%} of a share at most"
    return [*(kinds[kind] for kind in sorted(kinds)), share]


def _moment(call: Call, hold: Hold, chapters: Chapters) -> int:
    """Get when something was admitted, 0 where that is not certain enough to be counted."""
    if call.at or not hold.chunk:
        return call.at
    # Of what was taken ahead: it was spent just before the answer. What the server forgot may be
    # spent for as long as it would have been without that.
    per = us(BY_NAME[hold.policy].per)
    began, _ = chapters.span(chapters.of(call.done))
    if call.late > MICROS // 20 or call.done - began < per or call.asked // per != call.done // per:
        return 0
    return call.done


def _tolerance(name: str) -> float:
    # Spent at a moment that is known to 50 ms.
    return BY_NAME[name].limit * 0.05 if name == "a-rate" else 1e-6


def _reached(name: str, admitted: list[Admission]) -> tuple[str, Reached]:
    policy = BY_NAME[name]
    limit: int = policy.limit
    if isinstance(policy, Quota):
        if policy.rolling:
            reached = bounds.sliced(admitted, limit, us(policy.per), policy.slices)
            return "a rolling quota", reached
        # A calendar window holds all of a soak; the end of a year in the middle of one is theirs.
        per = 1 << 60 if policy.unit else us(policy.per)
        ahead = ", prefetched" if policy.prefetch else ""
        return f"a quota of fixed windows{ahead}", bounds.fixed_window(admitted, limit, per)
    per = us(policy.per)
    match str(policy.algorithm):
        case "gcra":
            burst = limit if policy.burst is None else policy.burst
            ahead = ", prefetched" if policy.prefetch else ""
            return f"a rate by gcra{ahead}", bounds.gcra(admitted, limit, per, burst)
        case "fixed_window":
            return "a rate by fixed_window", bounds.fixed_window(admitted, limit, per)
        case "sliding_log":
            return "a rate by sliding_log", bounds.sliding_log(admitted, limit, per)
        case _:
            return "a rate by sliding_window", bounds.sliced(admitted, limit, per, policy.slices)


def _slots(ledger: Ledger, chapters: Chapters) -> Invariant:
    found = Invariant("never more holders at once than slots")
    spans: defaultdict[Place, list[tuple[int, int, int]]] = defaultdict(list)
    for call in ledger.calls.values():
        for hold in call.holds if call.at else ():
            if isinstance(BY_NAME[hold.policy], Concurrency):
                chapter = chapters.of(call.at)
                ends = min(chapters.span(chapter)[1], call.held_until(hold.policy, LEASE_US))
                spans[hold.policy, hold.subject, chapter].append((call.at, ends, hold.reserved))
    fullest = 0.0
    for (name, subject, chapter), held in spans.items():
        most, limit = bounds.overlap(held, BY_NAME[name].limit)
        found.check(most <= limit, f"{name} {subject}, chapter {chapter}: {most:g} of {limit}")
        fullest = max(fullest, most / limit)
    total = sum(map(len, spans.values()))
    found.figures = f"{total:,} holds, {fullest:.0%} of the slots at most"
    return found


def _reasons(ledger: Ledger, episodes: Episodes) -> Invariant:
    """A fault never passes for a limit that was reached, nor the other way round."""
    found = Invariant("a veto for a fault says so, and one for a limit names the limit")
    for call in ledger.calls.values():
        if call.admitted or call.reason is None or not call.done:
            continue
        allowed = set(FULL.get(call.kind, set()))
        if call.kind not in NEVER_UNAVAILABLE:
            allowed.add(UNAVAILABLE)
        if call.unwanted:
            allowed.add(UNWANTED)
        around = {one.step.fault for one in episodes.during(call.asked, call.done)}
        if Fault.RIGHT_TAKEN in around:
            # Without the right to read it, a state is one that cannot be read.
            allowed.add("state_corrupt")
        if call.done - call.asked >= DEADLINE_US // 2:
            # The store used up the time that there was for the custom policy, or the local share.
            allowed |= {"policy_failed", UNAVAILABLE}
        found.check(call.reason in allowed, f"{call.reason}: {call}")
    found.figures = f"{sum(ledger.reasons.values()):,} vetoes"
    return found


def _unavailable(ledger: Ledger, episodes: Episodes) -> Invariant:
    found = Invariant("nobody is denied for want of the store unless it, or the way there, is hurt")
    # While a worker is stopped, its loop tells nothing of the machine.
    stalls = [
        stall
        for stall in ledger.stalls
        if not any(
            episode.step.fault is Fault.WORKER_STOPPED and stall.who in episode.hit
            for episode in episodes.during(stall.began, stall.began + stall.took)
        )
    ]
    excused = starved = 0
    for call in ledger.calls.values():
        if call.reason != UNAVAILABLE:
            continue
        if episodes.excused(call.worker, call.asked, call.done):
            excused += 1
            continue
        # What has no processor answers nobody: then as little runs here as there.
        starved += 1
        found.check(_stood_still(stalls, call) > DEADLINE_US // 6, f"{call}")
    found.figures = (
        f"{excused:,} such denials during faults, {starved:,} as the machine stood still"
    )
    return found


def _stood_still(stalls: list[Stall], call: Call) -> int:
    """Get for how long one of the processes could not run during a call, the worst of them."""
    lost = Counter[str]()
    for stall in stalls:
        lost[stall.who] += max(0, _overlap(stall, call))
    return max(lost.values(), default=0)


def _overlap(stall: Stall, call: Call) -> int:
    # It may have been lost with the connection on which another one's answer was overdue.
    begins = min(call.asked, call.done - DEADLINE_US)
    return min(stall.began + stall.took, call.done) - max(stall.began, begins)


def _answers(ledger: Ledger) -> Invariant:
    found = Invariant(f"every call is answered within its deadline and {SLACK:g} s")
    worst = 0
    for one in ledger.answers:
        over = one.took - one.bound - one.late
        worst = max(worst, over)
        found.check(over <= SLACK_US, f"{one.verb}: {over / MICROS:.3f} s over: {one}")
    found.figures = (
        f"{len(ledger.answers):,} answers, at worst {max(0, worst) / 1000:.0f} ms over the deadline"
    )
    return found


def _readable(ledger: Ledger, episodes: Episodes) -> Invariant:
    """But for the one subject whose state a fault breaks, and while it may not be read at all."""
    found = Invariant("no state is corrupt")
    for at, text in ledger.corrupt:
        around = {one.step.fault for one in episodes.during(at - DEADLINE_US, at)}
        found.check(Fault.RIGHT_TAKEN in around, text)
    return found


def _stale(ledger: Ledger, chapters: Chapters, episodes: Episodes) -> Invariant:
    """A reservation that nobody settled before, within its lease, is there to be settled."""
    found = Invariant("what is held is never reported stale before its lease ends")
    settled = 0
    for call in ledger.calls.values():
        if not call.at or call.tries != 1 or call.statuses is None:
            continue
        settled += 1
        ends = (call.kept or call.at) + LEASE_US
        if call.settled >= ends or chapters.of(call.at) != chapters.of(call.settled):
            continue
        for policy, status in call.statuses.items():
            kept = isinstance(BY_NAME.get(policy), Concurrency | RateLimit) or (
                # One whose window is over is stale, and rightly so.
                policy in {"p-budget", "p-rolling", "returned"}
            )
            around = {one.step.fault for one in episodes.during(call.released, call.settled)}
            if status == "state_corrupt" and Fault.RIGHT_TAKEN in around:
                continue
            if kept and status != "settled":
                found.check(False, f"{policy} was {status}: {call}")
    found.figures = f"{settled:,} settlements"
    return found


def _recovered(episodes: Episodes) -> Invariant:
    found = Invariant("after each fault every worker is served again")
    worst = 0
    for episode in episodes.all:
        if not episode.ended:
            continue
        found.check(episode.recovery is not None, f"{episode.step.fault}: {episode.note}")
        worst = max(worst, episode.recovery or 0)
    found.figures = f"{len(episodes.all)} faults, {worst / MICROS:.2f} s at worst"
    return found
