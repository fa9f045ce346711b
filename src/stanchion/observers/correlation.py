"""Ids of traces and spans that every process works out alike, from what the events carry.

A run is one trace wherever its nodes execute, and a span can name its parent although another
process reports that, later, or never.
"""

from __future__ import annotations

from hashlib import blake2b


def trace_id(run_id: str) -> int:
    """Get the 128-bit id of the trace of a run."""
    return _number(16, "trace", run_id)


def span_id(*parts: str) -> int:
    """Get the 64-bit id of the span that these parts name, such as a run, a node, an attempt."""
    return _number(8, "span", *parts)


def _number(size: int, *parts: str) -> int:
    digest = blake2b(digest_size=size, person=b"stanchion")
    for part in parts:
        text = part.encode("utf-8", "surrogatepass")
        # With its length, or ("a", "bc") and ("ab", "c") would be the same.
        digest.update(len(text).to_bytes(8))
        digest.update(text)
    # Zero is not an id.
    return int.from_bytes(digest.digest()) or 1
