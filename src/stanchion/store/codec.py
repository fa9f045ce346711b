"""Between the store's values and the KEYS, ARGV and replies of the scripts; pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from stanchion.store.epoch import Epoch
from stanchion.store.protocol import Reply

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
        #: Those of subjects, which come last.
        self.indexes: dict[str, None] = {}

    def position(self, key: str, aux: str) -> int:
        position = self._positions.get(key)
        if position is None:
            self.names += (key, aux)
            position = self._positions[key] = len(self.names) - 1
        return position

    def all(self, kinds: set[str]) -> list[str]:
        """Get every name; `kinds` are added to where a script is to look at indexes."""
        if self.indexes:
            kinds.add(SUBJECTS)
        return [*self.names, *self.indexes] if self.indexes else self.names


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


# What these take is told apart by nobody's name, and needs no chance.
_NAMELESS = frozenset({"gcra", "sliding_window", "fixed_window"})


# What a script has besides kinds, where a declaration says how to begin after a loss.
COLD = "cold"
# And where one says how many subjects may have state.
SUBJECTS = "subjects"


def encode_requests(
    requests: Sequence[Request],
    shared: Sequence[str],
    keep_us: int = 0,
    epoch: tuple[str, str] = ("", ""),
) -> tuple[list[str], list[str], frozenset[str]]:
    """Get KEYS, ARGV after nonce and channels, and the kinds of limit, of one admit or peek call.

    What many requests ask is written once. `shared` are the keys that every such call has, and
    `keep_us` is for how long at most the caller keeps denials, 0 for not at all. `epoch` are the
    key of the epoch and the id that the caller knows of it.
    """
    keys = _Keys(*shared)
    # By identity: requests that ask the same share their tuple, and a hash would cost more.
    places: dict[int, int] = {}
    distinct: list[tuple[Operation, ...]] = []
    plain: list[bool] = []
    kinds: set[str] = set()
    rows: list[object] = []
    for permit, operations, place, luck, _, _, undoable in requests:
        number = places.get(id(operations))
        if number is None:
            distinct.append(operations)
            number = places[id(operations)] = len(distinct)
            asked = {op.kind for op in operations}
            plain.append(asked <= _NAMELESS)
            kinds |= asked
            if any(op.cold for op in operations):
                kinds.add(COLD)
        position = -number if undoable else number
        if place is not None:
            rows.append((position, permit, luck, place.ticket, place.lease_us, place.waiter))
        else:
            rows.append(position if plain[number - 1] else (position, permit, luck))
    for operations in distinct:
        for op in operations:
            keys.position(op.key, op.aux)
            if op.subjects:
                keys.indexes[op.subjects] = None
    subjects = (len(keys.names) - len(shared)) // 2
    specs: dict[str, int] = {}
    questions = [[_row(op, specs, keys) for op in operations] for operations in distinct]
    body: tuple[object, ...] = (questions, rows, keep_us) if keep_us else (questions, rows)
    if COLD in kinds:
        key, known = epoch
        keys.names.append(key)
        body = (questions, rows, keep_us or False, (len(keys.names), known))
    return keys.all(kinds), [_json(body), str(subjects), *specs], frozenset(kinds)


def _row(op: Operation, specs: dict[str, int], keys: _Keys) -> list[object]:
    spec = specs.setdefault(op.spec, len(specs) + 1)
    row: list[object] = [spec, keys.position(op.key, op.aux), op.cost, 1 if op.shadow else 0]
    if op.windows or op.line or op.most:
        row.append(op.windows)
    if op.line or op.most:
        row.append(keys.position(*op.line) if op.line else False)
    if op.most:
        row.append(op.most)
    return row


def encode_leaving(
    leaving: Sequence[tuple[str, Sequence[Operation]]],
) -> tuple[list[str], list[str]]:
    """Get KEYS, and ARGV after nonce and channels, of one leave call."""
    names: list[str] = []
    indexes: dict[str, None] = {}
    rows: list[object] = []
    for waiter, operations in leaving:
        positions: list[int] = []
        for op in operations:
            if op.line:
                positions.append(len(names) + 1)
                names += (op.key, op.aux, *op.line)
                if op.subjects:
                    indexes[op.subjects] = None
        rows.append((waiter, positions))
    return [*names, *indexes], [_json(rows)]


def encode_settlements(
    settlements: Sequence[Settlement], shared: Sequence[str]
) -> tuple[list[str], list[str], frozenset[str]]:
    """Get KEYS, ARGV after nonce, channels and worker, and the kinds of limit, of a settle call."""
    keys = _Keys(*shared)
    kinds: set[str] = set()
    rows: list[object] = []
    for permit, outcome, parts in settlements:
        row: list[object] = []
        texts: list[str | bool] = []
        for kind, key, aux, reserved, hold, actual, unknown, luck, found, subjects in parts:
            kinds.add(kind)
            if subjects:
                keys.indexes[subjects] = None
            position = keys.position(key, aux)
            row.append((kind, position, reserved, actual, 1 if unknown else 0, luck, *hold))
            texts.append(bool(found) and found.decode())
        rows.append((permit, outcome, row, texts) if any(texts) else (permit, outcome, row))
    return keys.all(kinds), [_json(rows)], frozenset(kinds)


def encode_renewals(
    renewals: Sequence[Renewal],
) -> tuple[list[str], list[str], frozenset[str]]:
    """Get KEYS, ARGV after nonce and channels, and the kinds of limit, of one renew call."""
    keys = _Keys()
    kinds: set[str] = set()
    rows: list[object] = []
    for permit, parts in renewals:
        row: list[object] = []
        for part in parts:
            kinds.add(part.kind)
            if part.subjects:
                keys.indexes[part.subjects] = None
            row.append((part.kind, keys.position(part.key, part.aux), part.reserved, *part.hold))
        rows.append((permit, row))
    return keys.all(kinds), [_json(rows)], frozenset(kinds)


def decode_replies(raw: RawReply) -> list[Reply]:
    """Get the answers of an admit or peek call, in the order of the requests."""
    now_us, sequence = cast("int", raw[1]), cast("int", raw[2])
    rows = cast("list[list[Any]]", raw[3])
    # What is peeked at takes no place in line, and nothing ahead.
    return [Reply(lines, admitted, now_us, sequence, *rest) for admitted, lines, *rest in rows]


def decode_epoch(raw: RawReply, tag: str) -> Epoch:
    """Get the epoch of a hash tag."""
    name, born_us, lost_us, previous, spread = cast("list[Any]", raw[3])
    return Epoch(tag, name.decode(), born_us, max(0, lost_us), previous.decode(), spread.decode())


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
