"""How long does it take to search a text, and does a bad pattern run away?

`stanchion` is a whole `ContentPolicy` that looks for a term, a pattern, secrets and personal data.
The others search for one pattern that makes backtracking engines run away, in a text that has no
match: `re` of the standard library, `regex` with a timeout of 0.1 s, and RE2. `us per 1,000` is per
thousand characters, of a text of 1,000 and one of 10,000; where those differ, the time is not
linear. `re` is given texts of 20 and 22 characters, for it would not come back from more.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

from harness import report
from harness.command import Run, main
from harness.machine import installed
from harness.measure import Results

from stanchion.events import LLMPromptSent
from stanchion.policies.content import ContentPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

EVIL = r"(a|aa)+$"
TALK = "Please write to the sales team about the 3 orders of May, and be kind. "
NEEDS = {"stanchion": "google-re2", "RE2": "google-re2", "regex": "regex", "re": "stanchion"}


def policy() -> Callable[[int], object]:
    made = ContentPolicy(
        name="content",
        on=LLMPromptSent,
        fields="prompt",
        terms=("project falcon",),
        patterns={"evil": EVIL},
        secrets=True,
        personal=("email", "phone", "card", "iban", "us_ssn"),
        phone_region="US",
    )

    def search(size: int) -> None:
        event = LLMPromptSent(model="m1", prompt=(TALK * (size // len(TALK) + 1))[:size])
        asyncio.run(made.evaluate(event))

    return search


def re2_() -> Callable[[int], object]:
    import re2

    expression = re2.compile(EVIL)
    return lambda size: expression.search("a" * size + "b")


def regex_() -> Callable[[int], object]:
    import regex

    expression = regex.compile(EVIL)

    def search(size: int) -> None:
        try:
            expression.search("a" * size + "b", timeout=0.1)
        except TimeoutError:
            return

    return search


def re_() -> Callable[[int], object]:
    expression = re.compile(EVIL)
    return lambda size: expression.search("a" * size + "b")


MAKERS = {"stanchion": policy, "RE2": re2_, "regex": regex_, "re": re_}


def sampled(name: str) -> dict[str, float]:
    search = MAKERS[name]()
    small, large = (20, 22) if name == "re" else (1000, 10_000)
    taken: dict[str, float] = {}
    for figure, size, calls in (("small_us", small, 20), ("large_us", large, 5)):
        search(size)
        began = time.perf_counter()
        for _ in range(calls):
            search(size)
        taken[figure] = (time.perf_counter() - began) / calls * 1e6 / size * 1000
    return taken


def measure(run: Run) -> None:
    results = Results()
    for name in MAKERS:
        if run.only and name not in run.only:
            continue
        if not installed(NEEDS[name]):
            results.left_out.append(f"{name}: {NEEDS[name]} is not installed")
            continue
        results.rounds[name] = [sampled(name) for _ in range(run.rounds)]
    columns = [
        report.Column("us per 1,000, short", "small_us", ",.1f"),
        report.Column("us per 1,000, long", "large_us", ",.1f"),
    ]
    table = report.tabulate("searching a text", results, columns)
    run.add("content_search", results, table)


if __name__ == "__main__":
    main("content_search", __doc__, measure)
