"""How far the server's clock is from ours, as far as the decisions tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stanchion.cli.demo.records import Asked


def offset_us(decisions: Iterable[Asked]) -> int:
    """Get how far the server's clock is ahead; 0 where nothing speaks against one clock for both.

    Each decision was made, by the server's clock, between our asking and our being told.
    """
    lowest, highest = None, None
    for asked in decisions:
        if asked.at_us is None:
            continue
        low, high = asked.at_us - asked.after_us, asked.at_us - asked.before_us
        lowest = low if lowest is None else max(lowest, low)
        highest = high if highest is None else min(highest, high)
    if lowest is None or highest is None or lowest <= 0 <= highest:
        return 0
    return (lowest + highest) // 2
