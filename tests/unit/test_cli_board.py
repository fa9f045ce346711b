"""What is shown while the demo runs, drawn once."""

from __future__ import annotations

import io
from types import SimpleNamespace

from rich.console import Console

from stanchion.cli.demo.board import LiveView, PlainView
from stanchion.cli.demo.plan import Report
from stanchion.cli.demo.scene import Scene
from stanchion.states import parse_state


def state(kind, policy, subject, *lines):
    key = f"stanchion:{{demo}}:{kind}:{policy}:{subject}"
    return parse_state(
        (f"key {key}", f"kind {kind}", f"policy {policy}", f"subject {subject}", *lines)
    )


STATES = (
    state(
        "circuit", "provider", "large", "now half_open", "probes 1", "declared.half_open_calls 2"
    ),
    state("rate", "calls", "acme:large", "in_use 7.5", "remaining 2", "capacity 10"),
)


def worker(number, calls, refused, **fields):
    report = Report(at="busy", calls=calls, refused=refused, in_flight=number, **fields)
    return SimpleNamespace(number=number, pid=100 + number, report=report)


def scene(elapsed, calls, **fields):
    workers = (
        worker(
            1,
            calls,
            2 * calls,
            admitted={"calls acme:large": calls},
            vetoed={"calls acme:large": 3, "provider large": 4},
            learned={"provider large open": 0.0021},
        ),
        worker(2, calls, 0, admitted={"calls acme:large": calls}),
        SimpleNamespace(number=3, pid=103, report=None),
    )
    known = {"seconds": 12.0, "failing": None, "states": STATES, "workers": workers}
    return Scene(elapsed, **{**known, **fields})


def drawn(what):
    out = io.StringIO()
    console = Console(file=out, width=120)
    console.print(what)
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_the_live_table_has_policies_with_their_use_and_workers_with_their_rates():
    view = LiveView(Console(file=io.StringIO()))
    view.draw(scene(4.0, 10))
    lines = drawn(view.draw(scene(4.5, 30)))
    assert lines[0].startswith("4.5 s of 12 s")
    assert lines[0].endswith("60 admitted 60 vetoed running")
    assert "provider large 0 4 half open 1 of 2 probes out" in lines
    (calls,) = [line for line in lines if line.startswith("calls ")]
    assert calls.startswith("calls acme large 8 of 10 █")
    assert calls.endswith("60 3")
    # 20 more in half a second.
    assert "1 101 40.0 80.0 1 0 provider large open after 2.1 ms" in lines
    assert "2 102 40.0 0.0 2 0" in lines
    assert not any(line.startswith("3 103") for line in lines)


def test_the_title_tells_of_the_outage_and_of_the_end():
    view = LiveView(Console(file=io.StringIO()))
    assert (
        "the provider of 'large' is failing" in drawn(view.draw(scene(5.0, 1, failing="large")))[0]
    )
    assert "stopping" in drawn(view.draw(scene(12.5, 1, failing="large", stopping=True)))[0]


def test_a_plain_line_has_what_came_since_the_last():
    out = io.StringIO()
    with PlainView(Console(file=out, width=100)) as view:
        view.show(scene(1.0, 10))
        view.show(scene(2.0, 15, failing="large"))
    first, second = (" ".join(line.split()) for line in out.getvalue().splitlines())
    assert first == (
        "1.0 s +20 admitted +20 vetoed (calls 3, provider 4) circuits: large half open"
    )
    assert second == (
        "2.0 s +10 admitted +10 vetoed circuits: large half open the provider of large is failing"
    )
