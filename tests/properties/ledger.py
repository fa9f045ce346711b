"""Invariants that are read from the replies alone, without the model.

The ledger writes down what was admitted and settled, by key, and holds it against what each kind
of limit promises. A change of the declaration, or a reset, begins a new page: what a promise is
then worth depends on what was carried over, which is the model's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from stanchion.store.protocol import OpReply, Part
from tests.model.base import Spec, ceil_div
from tests.properties.replay import spec_of
from tests.properties.rig import Asked, Call, Renewed, Reset, Settled

LEGAL = {
    ("closed", "open"),
    ("open", "half_open"),
    ("half_open", "closed"),
    ("half_open", "open"),
}
#: Whose settlement leaves nothing behind that could be settled again.
ONCE = {"quota", "rolling", "circuit", "slots"}


@dataclass
class Entry:
    """One admission under one key. What it weighs is what was reserved, or less once settled."""

    permit: str
    at: int
    weight: int
    until: int
    hold: tuple[int, ...]
    probe: bool
    live: bool = True


@dataclass
class Page:
    """What was admitted under one declaration."""

    spec: Spec
    rollover: int
    entries: dict[str, Entry] = field(default_factory=dict)


@dataclass
class View:
    """What somebody knows of a key who only listens to what is published."""

    seq: int
    generation: int
    state: str
    open_until: int
    at: int


class Ledger:
    """Everything that was admitted, settled and published."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.views: dict[str, View] = {}
        self.admitted: Counter[str] = Counter()
        self.settled: Counter[tuple[str, str]] = Counter()

    # ---- writing it

    def feed(self, calls: Iterable[Call], at: Callable[[str], int]) -> None:
        """Take in calls of one moment, which is what `at` gives by key: servers' clocks go back."""
        for call in calls:
            match call:
                case Asked(charged=True):
                    self._asked(call, at)
                case Settled():
                    for part, status in zip(call.parts, call.statuses, strict=True):
                        if status == "settled":
                            self._settled(call, part)
                case Renewed():
                    self._renewed(call)
                case Reset():
                    for key in call.keys:
                        self.forget(key)
                case _:
                    pass

    def forget(self, key: str) -> None:
        """Begin anew for a key whose state has gone."""
        self.pages.pop(key, None)
        self.views.pop(key, None)

    def _asked(self, call: Asked, at: Callable[[str], int]) -> None:
        self.admitted[call.request.permit] += call.reply.admitted
        for op, reply in zip(call.request.operations, call.reply.operations, strict=True):
            page = self._page(op.key, spec_of(op.spec))
            if reply.hold:
                now = at(op.key)
                self._check_open(op.key, now, reply)
                page.entries[call.request.permit] = Entry(
                    call.request.permit,
                    now,
                    op.cost,
                    reply.expires_us,
                    reply.hold,
                    probe=reply.limit >= 0,
                )
                self._check_page(page, now)

    def _page(self, key: str, spec: Spec) -> Page:
        page = self.pages.get(key)
        if page is None or page.spec != spec:
            # What was rolled over before is not taken away by another declaration.
            most = max(spec.get("rollover", 0), page.rollover if page else 0)
            page = self.pages[key] = Page(spec, most)
        return page

    def _renewed(self, call: Renewed) -> None:
        for part, end in zip(call.parts, call.ends, strict=True):
            entry = self._entry(part.key, call.permit)
            if entry is not None and end:
                entry.until = end

    def _entry(self, key: str, permit: str) -> Entry | None:
        page = self.pages.get(key)
        return None if page is None else page.entries.get(permit)

    def _settled(self, call: Settled, part: Part) -> None:
        unwatched = part.kind == "circuit" and part.hold[0] == 0
        free = part.reserved == 0 and (part.kind == "slots" or part.actual == 0)
        if part.kind in ONCE and not unwatched and not free:
            self.settled[part.key, call.permit] += 1
            # 5: a ticket settles at most once.
            assert self.settled[part.key, call.permit] == 1, f"{call.permit} settled twice"
        entry = self._entry(part.key, call.permit)
        if entry is None:
            return
        entry.live = False
        actual = 0 if call.outcome == "undo" else part.actual
        refund = part.unknown and self.pages[part.key].spec.get("unsettled") == "refund"
        entry.weight = min(entry.weight, 0 if refund else actual)

    # ---- what was admitted is within what was promised

    def _lapse(self, page: Page, now: int) -> None:
        """Take out what comes back by itself: reservations that nobody settled in time."""
        if page.spec.get("unsettled") == "refund":
            for entry in page.entries.values():
                if entry.live and entry.until <= now:
                    entry.weight = 0

    def _check_page(self, page: Page, now: int) -> None:
        """Check what each kind promises: rates (1), probes (6), quotas (9), slots (11)."""
        self._lapse(page, now)
        entries = list(page.entries.values())
        spec = page.spec
        match spec["kind"]:
            case "gcra":
                self._check_bucket(entries, spec)
            case "sliding_log":
                most = self._heaviest(entries, spec["per"] - 1)
                assert most <= spec["limit"], f"{most} in {spec['per']} us: {entries}"
            case "sliding_window" | "rolling":
                # Exact to one slice: a window that is one shorter never holds more.
                span = ceil_div(spec["per"], spec["slices"]) * (spec["slices"] - 1)
                most = self._heaviest(entries, span)
                assert most <= spec["limit"], f"{most} in {span} us: {entries}"
            case "fixed_window":
                used = Counter[int]()
                for entry in entries:
                    used[entry.at // spec["per"]] += entry.weight
                assert max(used.values()) <= spec["limit"], entries
            case "quota":
                used = Counter[int]()
                for entry in entries:
                    used[entry.hold[0]] += entry.weight
                assert max(used.values()) <= spec["limit"] + page.rollover, entries
            case "slots":
                held = sum(e.weight for e in entries if e.live and e.until > now)
                assert held <= spec["limit"], f"{held} slots held: {entries}"
            case "circuit":
                probes = Counter(e.hold[0] for e in entries if e.probe and e.live and e.until > now)
                assert max(probes.values(), default=0) <= spec["half_open_calls"], entries
            case kind:
                raise ValueError(kind)

    def _check_bucket(self, entries: list[Entry], spec: Spec) -> None:
        """In any span of t: at most burst + limit * t / per."""
        level, at = Fraction(0), 0
        for entry in entries:
            drained = Fraction((entry.at - at) * spec["limit"], spec["per"])
            level, at = max(Fraction(0), level - drained) + entry.weight, entry.at
            assert level <= spec["burst"], f"{float(level)} in a bucket of {spec}: {entries}"

    def _heaviest(self, entries: list[Entry], span: int) -> int:
        return max(
            sum(other.weight for other in entries if entry.at - span <= other.at <= entry.at)
            for entry in entries
        )

    # ---- what is published

    def hear(
        self, events: Iterable[dict[str, str]], specs: Mapping[str, Spec], forced: set[str]
    ) -> None:
        """Take in what was published by states under these declarations; some were forced."""
        for event in events:
            key, seq = event["key"], int(event["seq"])
            if event["reason" if "reason" in event else "type"] == "reset":
                self.forget(key)
                continue
            view = self.views.get(key)
            if view is not None:
                # 14: no gap, no repetition.
                assert seq == view.seq + 1, f"{key}: seq {view.seq} is followed by {seq}"
            if event["type"].startswith("circuit:"):
                if key not in forced:
                    edge = (event["previous"], event["state"])
                    assert edge in LEGAL, f"{key}: {edge}"
                self._hear_circuit(key, seq, event, view)
                if event["type"] == "circuit:opened":
                    self._check_pause(specs[key], event)
            else:
                self.views[key] = View(seq, 0, "", 0, int(event["at_us"]))

    def _hear_circuit(self, key: str, seq: int, event: dict[str, str], view: View | None) -> None:
        generation = int(event["generation"])
        if view is not None:
            # 4: every transition has a generation of its own, and begins where the last one ended.
            assert generation == view.generation + 1, f"{key}: {view.generation} -> {generation}"
            assert event["previous"] == view.state, f"{key}: {event} after {view}"
        opened = event["type"] == "circuit:opened"
        until = int(event["open_until_us"]) if opened else 0
        self.views[key] = View(seq, generation, event["state"], until, int(event["at_us"]))

    def _check_pause(self, spec: Spec, event: dict[str, str]) -> None:
        """Check (8) that the pause is never below what was asked for, and capped."""
        pause = int(event["open_until_us"]) - int(event["at_us"])
        shortest, jitter = spec["open_for"], spec["jitter"]
        longest = max(shortest, spec["max_open_for"]) * (1 + jitter)
        assert shortest <= pause <= longest, f"open for {pause} us: {spec}"

    def _check_open(self, key: str, now: int, reply: OpReply) -> None:
        """Check (8) that nothing is let through while a circuit is open."""
        view = self.views.get(key)
        if view is not None and reply.hold and view.state in {"open", "forced_open"}:
            assert view.state == "open", f"let through at {now}: {view}"
            assert now >= view.open_until, f"let through at {now}: {view}"

    def circuits(self) -> Iterator[tuple[str, View]]:
        """Get each circuit as a listener knows it."""
        for key, view in self.views.items():
            if view.state:
                yield key, view


def within_reason(fields: dict[str, str], spec: Spec) -> bool:
    """Whether a state is no larger than its declaration allows, however many asked."""
    slices = 1 + spec.get("slices", 10)
    reporters = 64 if spec.get("reporters", 1) > 1 else 0
    ring = len(fields.get("ring", ""))
    return len(fields) <= 18 + slices + reporters and ring <= spec.get("calls", 0)
