"""Between the store's values and the KEYS, ARGV and replies of the scripts; pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from stanchion.store.protocol import OpReply, Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stanchion.store.protocol import Operation, Part, Request

Settlement = tuple[str, str, "Sequence[Part]"]
Renewal = tuple[str, "Sequence[Part]"]
RawReply = list[object]


class _Keys:
    """KEYS of a call: each subject's pair once, found again by position."""

    def __init__(self, *first: str) -> None:
        self.names = list(first)
        self._positions: dict[str, int] = {}

    def position(self, key: str, aux: str) -> int:
        position = self._positions.get(key)
        if position is None:
            self.names += (key, aux)
            position = self._positions[key] = len(self.names) - 1
        return position


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def encode_requests(
    requests: Sequence[Request], overrides: str, circuits: str
) -> tuple[list[str], list[str]]:
    """Get KEYS, and ARGV after nonce and channels, of one admit or peek call."""
    keys = _Keys(overrides, circuits)
    for request in requests:
        for op in request.operations:
            keys.position(op.key, op.aux)
    subjects = (len(keys.names) - 2) // 2
    specs: dict[str, int] = {}
    rows: list[object] = []
    for request in requests:
        ops: list[list[object]] = []
        for op in request.operations:
            spec = specs.setdefault(op.spec, len(specs) + 1)
            row: list[object] = [
                spec,
                keys.position(op.key, op.aux),
                op.cost,
                1 if op.shadow else 0,
                op.luck,
            ]
            if op.windows or op.line:
                row.append(op.windows)
            if op.line:
                row.append(keys.position(*op.line))
            ops.append(row)
        place = request.place
        waiting = () if place is None else (place.ticket, place.lease_us, place.waiter)
        rows.append((request.permit, ops, *waiting))
    return keys.names, [_json(rows), str(subjects), *specs]


def encode_leaving(
    leaving: Sequence[tuple[str, Sequence[Operation]]],
) -> tuple[list[str], list[str]]:
    """Get KEYS, and ARGV after nonce and channels, of one leave call."""
    names: list[str] = []
    rows: list[object] = []
    for waiter, operations in leaving:
        positions: list[int] = []
        for op in operations:
            if op.line:
                positions.append(len(names) + 1)
                names += (op.key, op.aux, *op.line)
        rows.append((waiter, positions))
    return names, [_json(rows)]


def encode_settlements(
    settlements: Sequence[Settlement], circuits: str
) -> tuple[list[str], list[str]]:
    """Get KEYS, and ARGV after nonce, channels and worker, of one settle call."""
    keys = _Keys(circuits)
    rows = [
        (
            permit,
            outcome,
            [
                (
                    part.kind,
                    keys.position(part.key, part.aux),
                    part.reserved,
                    part.actual,
                    1 if part.unknown else 0,
                    part.luck,
                    *part.hold,
                )
                for part in parts
            ],
        )
        for permit, outcome, parts in settlements
    ]
    return keys.names, [_json(rows)]


def encode_renewals(renewals: Sequence[Renewal]) -> tuple[list[str], list[str]]:
    """Get KEYS, and ARGV after nonce and channels, of one renew call."""
    keys = _Keys()
    rows = [
        (
            permit,
            [
                (part.kind, keys.position(part.key, part.aux), part.reserved, *part.hold)
                for part in parts
            ],
        )
        for permit, parts in renewals
    ]
    return keys.names, [_json(rows)]


def decode_replies(raw: RawReply) -> list[Reply]:
    """Get the answers of an admit or peek call, in the order of the requests."""
    now_us, sequence = cast("int", raw[1]), cast("int", raw[2])
    rows = cast("list[list[Any]]", raw[3])
    return [
        Reply(
            admitted=admitted == 1,
            operations=tuple(
                OpReply(_text(line[0]), line[1], line[2], line[3], line[4], line[5], (*line[6:],))
                for line in lines
            ),
            now_us=now_us,
            sequence=sequence,
            ticket=rest[0] if rest else 0,
        )
        for admitted, lines, *rest in rows
    ]


def decode_statuses(raw: RawReply) -> list[tuple[str, ...]]:
    """Get what became of each part of each settlement."""
    rows = cast("list[list[object]]", raw[3])
    return [tuple(_text(status) for status in statuses) for statuses in rows]


def decode_lease_ends(raw: RawReply) -> list[tuple[int, ...]]:
    """Get the new lease ends of each permit's parts, in microseconds; 0 where lost."""
    rows = cast("list[list[int]]", raw[3])
    return [tuple(ends) for ends in rows]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
