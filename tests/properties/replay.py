"""Holding a record of script calls against the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import groupby
from typing import Any

from stanchion.store.protocol import Operation, OpReply, Part, Request
from tests.model.base import Ask, Report
from tests.model.chain import Chain, Outcome, Step
from tests.properties.rig import Asked, Call, Forced, Renewed, Reset, Settled

Row = tuple[str, int | None, int | None, int | None, int | None, int]


@cache
def spec_of(text: str) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(text)
    return {"on_change": "keep", "burst": spec.get("limit"), **spec}


def step_of(request: Request, op: Operation) -> Step:
    ask = Ask(request.permit, op.cost, request.luck, op.windows)
    return Step(op.key, spec_of(op.spec), ask, op.shadow)


def _none(number: int) -> int | None:
    return None if number < 0 else number


def told_row(reply: OpReply) -> Row:
    return (
        reply.reason,
        _none(reply.limit),
        _none(reply.remaining),
        _none(reply.wait_us),
        _none(reply.reset_us),
        reply.expires_us,
    )


def expected_row(outcome: Outcome) -> Row:
    a = outcome.answer
    return (a.reason, a.limit, a.remaining, a.wait, a.reset, outcome.until)


def unknown_window(call: Asked) -> bool:
    """Whether nothing was decided, since the request brought no window of this moment."""
    return any(reply.reason == "window_unknown" for reply in call.reply.operations)


class Replay:
    """The model, fed with what was asked of the scripts; every difference is an AssertionError."""

    def __init__(self) -> None:
        self.chain = Chain()
        #: Whether what is undone was admitted in vain, so that the store is to be as before.
        self.in_vain = False
        self._refunds = 0

    @property
    def final(self) -> int:
        """How much was done of late that no undo takes back to the byte."""
        return self._refunds + self.chain.final

    def feed(self, now: int, calls: Iterable[Call]) -> None:
        """Replay calls that were made at one moment."""
        for _, together in groupby(calls, key=lambda c: c.call if isinstance(c, Settled) else -1):
            several = list(together)
            undone = self._undo([call for call in several if isinstance(call, Settled)])
            for call in several:
                self._one(now, call, undone)

    def _undo(self, calls: list[Settled]) -> set[tuple[str, str]]:
        """Go back to what admissions found, from the last to the first that can."""
        left = {(call.permit, part.key) for call in calls for part in call.parts if self.in_vain}
        undone = set[tuple[str, str]]()
        while done := {one for one in left - undone if self.chain.undo(*one)}:
            undone |= done
        return undone

    def _one(self, now: int, call: Call, undone: set[tuple[str, str]]) -> None:
        chain = self.chain
        match call:
            case Asked():
                self.asked(now, call)
            case Settled():
                expected = [
                    "settled"
                    if (call.permit, part.key) in undone
                    else self._settle(now, call, part)
                    for part in call.parts
                ]
                told = list(call.statuses)
                assert told == expected, f"{call.outcome} {call.parts}: {told} != {expected}"
            case Renewed():
                ends = [
                    chain.renew(now, p.key, p.kind, call.permit, p.reserved) for p in call.parts
                ]
                assert list(call.ends) == ends, f"renewed {call.parts}: {call.ends} != {ends}"
            case Forced():
                previous = chain.force(now, call.key, spec_of(call.spec), call.state)
                assert call.previous == previous
            case Reset():
                assert call.count == chain.reset(now, call.keys)

    def hear(self, published: Iterable[Mapping[str, str]]) -> None:
        """Hold what was published against what is to be, since the last time."""
        expected = [_read(event) for event in self.chain.drain()]
        heard = [_read(event) for event in published]
        assert heard == expected, f"{heard} is not {expected}"

    def asked(self, now: int, call: Asked) -> list[Outcome]:
        """Replay one admission or peek; get what the model says of it."""
        request, reply = call.request, call.reply
        if unknown_window(call):
            if call.charged:
                self.chain.notice(now, [step_of(request, op) for op in request.operations])
            return []
        assert reply.now_us == now
        ask = self.chain.admit if call.charged else self.chain.peek
        admitted, outcomes = ask(now, [step_of(request, op) for op in request.operations])
        told = [told_row(answer) for answer in reply.operations]
        expected = [
            _with_wait_of(row, expected_row(outcome))
            for row, outcome in zip(told, outcomes, strict=True)
        ]
        assert told == expected, _difference(request.operations, told, expected)
        assert reply.admitted == admitted
        if call.charged:
            held = [bool(answer.hold) for answer in reply.operations]
            assert held == [outcome.held for outcome in outcomes]
        return outcomes

    def _settle(self, now: int, call: Settled, part: Part) -> str:
        report = Report(
            call.permit,
            call.outcome,
            part.reserved,
            0 if call.outcome == "undo" else part.actual,
            part.unknown and call.outcome != "undo",
            part.luck,
            call.worker,
        )
        kept = self.chain.kept
        status = self.chain.settle(now, part.key, part.kind, report)
        self._refunds += self.in_vain and self.chain.kept > kept
        return status


def _with_wait_of(told: Row, expected: Row) -> Row:
    """Get what was expected; when a state ends the model does not know, so waiting has to show."""
    if expected[0] != "too_many_subjects" or not told[3] or told[3] != told[4]:
        return expected
    return (*expected[:3], *told[3:5], expected[5])


def _difference(operations: Iterable[Operation], told: list[Row], expected: list[Row]) -> str:
    lines = ["(reason, limit, remaining, wait, reset, expires)"]
    for op, script, model in zip(operations, told, expected, strict=True):
        if script != model:
            lines.append(f"{op.key} cost {op.cost} {op.spec}\n  script {script}\n  model  {model}")
    return "\n".join(lines)


def _read(event: Mapping[str, str]) -> dict[str, Any]:
    """Get an event with its shares as numbers: 0.8 has more than one spelling."""
    return {name: float(value) if name == "threshold" else value for name, value in event.items()}
