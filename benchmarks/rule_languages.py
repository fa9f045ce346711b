"""Which language should rules be in: how fast, and what when a field is missing?

Each is asked three conditions of one event that none of them vetoes: the fields are taken out of
the event, as a policy has to. `stanchion` is a whole `RulePolicy`, verdict included. `missing` is
the same where the event lacks the field, `compile` the time for the three conditions. Below stands
what each says where there is no answer; only what is neither true nor false can be told from one.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness import report
from harness.command import Run, main
from harness.machine import installed
from harness.measure import Results

from stanchion import Event
from stanchion.policies.rules import RulePolicy

if TYPE_CHECKING:
    from collections.abc import Mapping


class Ask(Event, type="rule_languages:ask"):
    tenant: str = "acme"
    model: str = "m1"
    tokens: int | None = 900


EVENT, LACKING = Ask(), Ask(tokens=None)
RULES = ("tokens > 8000", "model == 'm9' && tokens > 100", "tenant == 'evil'")
FIELDS = ("tenant", "model", "tokens")
CALLS = 2000
#: What is asked where there is no answer: in CEL, in ZEN, and the event's fields.
STRANGE: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "tokens > 8000, no such field": ("tokens > 8000", "tokens > 8000", {}),
    "tokens > 8000, none set": ("tokens > 8000", "tokens > 8000", {"tokens": None}),
    "tenant in [...], no such field": ("tenant in ['a']", "tenant in ['a']", {}),
    "plan.name == 'x', no such key": ("p.name == 'x'", "p.name == 'x'", {"p": {}}),
    "tokens > '5'": ("tokens > '5'", "tokens > '5'", {"tokens": 9}),
    "tokens = 5, for ==": ("tokens = 5", "tokens = 5", {"tokens": 5}),
    "tokens >": ("tokens >", "tokens >", {}),
    "tokens > 1 andd true": ("tokens > 1 andd true", "tokens > 1 andd true", {}),
    "tokns > 1, misspelt": ("tokns > 1", "tokns > 1", {"tokens": 5}),
    "1 / 0 > 2": ("1 / 0 > 2", "1 / 0 > 2", {}),
}


def fields_of(event: Ask) -> dict[str, Any]:
    return {name: getattr(event, name) for name in FIELDS}


def cel_rust(source: str) -> Callable[[Any], Any]:
    import cel

    return cel.compile(source).execute


def cel_context(values: dict[str, Any]) -> Any:
    import cel

    # What is converted once serves all three.
    return cel.Context(variables=values)


def zen(source: str) -> Callable[[Mapping[str, Any]], Any]:
    from zen import compile_expression

    return compile_expression(source.replace("&&", "and")).evaluate


def cel_cpp(source: str) -> Callable[[Mapping[str, Any]], Any]:
    from cel_expr_python import cel

    kinds = {"tenant": cel.Type.DYN, "model": cel.Type.STRING, "tokens": cel.Type.INT}
    program = cel.NewEnv(variables={**kinds, "p": cel.Type.DYN}).compile(source)

    def evaluate(values: Mapping[str, Any]) -> Any:
        result = program.eval(data=values)
        if result.type() == cel.Type.ERROR:
            raise ValueError(str(result.value()))
        return result.value()

    return evaluate


def as_they_are(values: dict[str, Any]) -> Any:
    return values


LANGUAGES = {
    "CEL in Rust": ("common-expression-language", cel_rust, cel_context),
    "CEL in C++": ("cel-expr-python", cel_cpp, as_they_are),
    "ZEN in Rust": ("zen-engine", zen, as_they_are),
}
Compile = Callable[[str], Callable[[Any], Any]]


def timed(call: Callable[[], object], calls: int) -> float:
    """Get the microseconds of one call."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6


def sampled(compile_: Compile, ready: Callable[[dict[str, Any]], Any]) -> dict[str, float]:
    compiling = timed(lambda: [compile_(source) for source in RULES], 20)
    rules = [compile_(source) for source in RULES]

    def ask(event: Ask) -> list[bool]:
        values = ready(fields_of(event))
        answers: list[bool] = []
        for rule in rules:
            try:
                answers.append(rule(values))
            except Exception:  # noqa: BLE001 - each has exceptions of its own
                answers.append(True)
        return answers

    assert ask(EVENT) == [False] * 3
    asked = timed(lambda: ask(EVENT), CALLS)
    return {"us": asked, "missing_us": timed(lambda: ask(LACKING), 50), "compile_us": compiling}


def ours() -> dict[str, float]:
    rules = [{"name": f"r{n}", "when": source, "reason": "no"} for n, source in enumerate(RULES)]

    def declared() -> RulePolicy:
        return RulePolicy(name="rules", on=Ask, rules=rules)

    compiling = timed(declared, 20)
    policy = declared()

    async def asked() -> tuple[float, float]:
        spans: list[float] = []
        for event, calls in ((EVENT, CALLS), (LACKING, 50)):
            began = time.perf_counter()
            for _ in range(calls):
                await policy.evaluate(event)
            spans.append((time.perf_counter() - began) / calls * 1e6)
        return spans[0], spans[1]

    taken, missing = asyncio.run(asked())
    return {"us": taken, "missing_us": missing, "compile_us": compiling}


def said(compile_: Compile, which: int) -> list[str]:
    """Get what a language says to each strange question, in a word or two."""
    answers: list[str] = []
    for question in STRANGE.values():
        try:
            rule = compile_(question[which])
        except Exception as error:  # noqa: BLE001
            place = re.search(r"<input>:\d+:(\d+)|\((\d+), \d+\)", str(error))
            column = place and (place[1] or place[2])
            answers.append(f"refused, column {column}" if column else "refused")
            continue
        try:
            answers.append(repr(rule(dict(question[2]))))
        except Exception:  # noqa: BLE001
            answers.append("error")
    return answers


def measure(run: Run) -> None:
    results = Results()
    present = dict.fromkeys(name for name in ("stanchion", *LANGUAGES) if chosen(run, name))
    for name in list(present):
        distribution = LANGUAGES[name][0] if name in LANGUAGES else "common-expression-language"
        if not installed(distribution):
            results.left_out.append(f"{name}: {distribution} is not installed")
            del present[name]
    for _ in range(run.rounds):
        for name in present:
            sample = ours() if name == "stanchion" else sampled(*LANGUAGES[name][1:])
            results.rounds.setdefault(name, []).append(sample)
    columns = [
        report.Column("three rules us", "us", ",.2f", ratio=True),
        report.Column("missing us", "missing_us", ",.1f"),
        report.Column("compile us", "compile_us", ",.0f"),
    ]
    table = report.tabulate("three rules about one event", results, columns)
    asked = {
        name: said(LANGUAGES[name][1], 1 if name.startswith("ZEN") else 0)
        for name in present
        if name in LANGUAGES
    }
    for number, question in enumerate(STRANGE):
        answers = "; ".join(f"{name}: {answers[number]}" for name, answers in asked.items())
        if answers:
            table.notes.append(f"{question}: {answers}")
    run.add("rule_languages", results, table)


def chosen(run: Run, name: str) -> bool:
    return not run.only or name in run.only


if __name__ == "__main__":
    main("rule_languages", __doc__, measure)
