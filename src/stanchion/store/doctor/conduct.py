"""How the server behaves: whether it runs scripts, what time it has, and how fast it answers."""

from __future__ import annotations

import hashlib
import secrets
import time
from statistics import quantiles
from typing import TYPE_CHECKING, Final, cast

from stanchion.store.doctor.findings import Check, Finding, Status
from stanchion.store.doctor.server import NotPermitted, Unasked, text

if TYPE_CHECKING:
    from stanchion.store.doctor.server import Server

# Nothing in it changes: the server is to know it from the first doctor on, and to keep one only.
_ECHO: Final = "return ARGV[1]"
_PINGS, _CALLS = 50, 20
_FAR, _OFF = 5.0, 0.5  # seconds
_SLOW, _SLUGGISH = 0.1, 0.01  # seconds
_SHARE = 0.4  # of the time that is left, for each kind of round trip


async def scripts(server: Server) -> tuple[Finding, str]:
    """See a script run, by its text and by its digest; get the digest too, empty where it is not.

    It is a script without a key that returns what it is told. The server keeps its text, as that of
    every script.
    """
    token = secrets.token_hex(8)
    try:
        first = text(await server.ask("EVAL", _ECHO, "0", token))
        digest = _digest()
        second = text(await server.ask("EVALSHA", digest, "0", token))
    except Unasked as error:
        who = "the user may not" if isinstance(error, NotPermitted) else "the server does not"
        found = f"{who} run scripts: {error}"
        return Finding(Check.SCRIPTS, Status.ERROR, found, "give it +eval and +evalsha"), ""
    if (first, second) != (token, token):
        found = "a script's reply is not what the script returned"
        remedy = "take away what stands between: a proxy that mixes up replies"
        return Finding(Check.SCRIPTS, Status.ERROR, found, remedy), ""
    return Finding(Check.SCRIPTS, Status.OK, "EVAL and EVALSHA work"), digest


async def clock(server: Server) -> Finding:
    """Compare the server's clock with this machine's, as near as the round trip allows."""
    best = off = 0.0
    for number in range(5):
        began, before = time.monotonic(), time.time()
        seconds, micros = cast("tuple[int, int]", await server.ask("TIME"))
        taken = time.monotonic() - began
        if number == 0 or taken < best:
            best, off = taken, int(seconds) + int(micros) / 1e6 - before - taken / 2
    side = "ahead of" if off >= 0 else "behind"
    found = f"{abs(off) * 1000:,.0f} ms {side} this machine, give or take {best * 500:.1f} ms"
    remedy = "synchronise both clocks (NTP): windows end, and leases run out, by the server's"
    distance = abs(off) - best / 2
    status = Status.WARNING if distance > _FAR else Status.HINT if distance > _OFF else Status.OK
    return Finding(Check.CLOCK, status, found, "" if status is Status.OK else remedy)


async def latency(server: Server, digest: str) -> Finding:
    """Measure round trips, of a command and of a script with this digest."""
    try:
        name, pings = "PING", await _round_trips(server, _PINGS, "PING")
    except NotPermitted:
        name, pings = "TIME", await _round_trips(server, _PINGS, "TIME")
    measured = {name: pings}
    if digest:
        measured["EVALSHA"] = await _round_trips(server, _CALLS, "EVALSHA", digest, "0", "-")
    found = ", ".join(f"{name} {_shown(*taken)}" for name, taken in measured.items())
    slowest = max(tail for _, tail, _ in measured.values())
    remedy = "be nearer to the server, and see its SLOWLOG: every decision is one such round trip"
    if slowest >= _SLUGGISH:
        status = Status.WARNING if slowest >= _SLOW else Status.HINT
        return Finding(Check.LATENCY, status, found, remedy)
    return Finding(Check.LATENCY, Status.OK, found)


async def _round_trips(server: Server, count: int, *command: str) -> tuple[float, float, int]:
    """Get the 50th and the 99th percentile in seconds, and of how many; fewer where it is slow."""
    ends = time.monotonic() + server.left * _SHARE
    taken: list[float] = []
    while len(taken) < count and (len(taken) < 2 or time.monotonic() < ends):
        began = time.monotonic()
        await server.ask(*command)
        taken.append(time.monotonic() - began)
    cuts = quantiles(taken, n=100, method="inclusive")
    return cuts[49], cuts[98], len(taken)


def _shown(middle: float, tail: float, count: int) -> str:
    return f"p50 {middle * 1000:.2f} ms, p99 {tail * 1000:.2f} ms of {count}"


def _digest() -> str:
    return hashlib.sha1(_ECHO.encode(), usedforsecurity=False).hexdigest()
