"""A policy that asks a service: what does it cost beside a bare call to the same service?

The service admits everything at once, in a process of its own, so that what is left is the client.
A bare call is aiohttp's: it posts a JSON text and reads one, with no deadline, no bound and no
breaker. RegoPolicy asks nobody: it runs OPA's engine on a thread of this process.
"""

from __future__ import annotations

from functools import partial

from contenders import authorizer
from harness import report
from harness.command import Run, main
from harness.measure import Contender

CALLERS = 64
POLICIES = 4
KEPT = {"by": ("subject", "model"), "cache_admit": "1h"}
COLUMNS = [
    report.Column("p50 us", "p50_us", ratio=True),
    report.Column("p99 us", "p99_us"),
    report.Column("CPU us/decision", "cpu_us", ",.1f", ratio=True),
    report.Column("decisions/s", "rate"),
]


def one(url: str) -> list[Contender]:
    """Get those who ask one service once."""
    return [
        Contender(
            "stanchion",
            lambda: authorizer.checked(lambda: [authorizer.http(url)]),
            note="HttpPolicy",
        ),
        Contender("bare call", partial(authorizer.bare, url), needs="aiohttp"),
        Contender("OpaPolicy", lambda: authorizer.checked(lambda: [authorizer.opa(url)])),
        Contender(
            "RegoPolicy",
            lambda: authorizer.checked(lambda: [authorizer.rego()]),
            needs="opa-golib-python-bindings",
        ),
        Contender(
            "answer kept", lambda: authorizer.checked(lambda: [authorizer.http(url, **KEPT)])
        ),
    ]


def several(url: str) -> list[Contender]:
    """Get those who ask four services about each event."""
    numbers = range(POLICIES)
    return [
        Contender(
            "stanchion",
            lambda: authorizer.checked(
                lambda: [authorizer.http(url, f"http-{number}") for number in numbers]
            ),
            note="four of one priority",
        ),
        Contender(
            "bare, together",
            partial(authorizer.bare, url, POLICIES, together=True),
            needs="aiohttp",
        ),
        Contender(
            "one by one",
            lambda: authorizer.checked(
                lambda: [authorizer.http(url, f"http-{n}", priority=n) for n in numbers]
            ),
            note="of four priorities",
        ),
        Contender("bare, one by one", partial(authorizer.bare, url, POLICIES), needs="aiohttp"),
    ]


async def measure(run: Run) -> None:
    with authorizer.running() as url:
        for part, contenders, callers, title in (
            ("callers_1", one(url), 1, "one service, one caller"),
            ("callers_64", one(url), CALLERS, f"one service, {CALLERS} callers"),
            ("policies_4", several(url), 1, "four services, one caller"),
        ):
            results = await run.compare(contenders, callers=callers, seconds=0.8)
            run.add(part, results, report.tabulate(title, results, COLUMNS))


if __name__ == "__main__":
    main("remote_policies", __doc__, measure)
