"""How many microseconds of the server's time does a decision take?

`in commands` is the server's own count (`INFO commandstats`) of the time in scripts, or in commands
for who has no script; `CPU` is all that the process used, reading and answering included. `batched`
is 64 callers, whose checks travel together. Nobody else's do but those of `bare pipeline`, which
are one script each all the same; the others' take the same time however many ask.
"""

from __future__ import annotations

from functools import partial

from contenders import rates
from five_policies import LIMITS, checked
from harness import report
from harness.command import Run, main
from harness.measure import WARM_UP, Contender, Results, drive, rotated

CALLERS = 64


async def sample(run: Run, who: Contender, callers: int) -> dict[str, float]:
    async with who.open() as call:
        await drive(who, call, callers, WARM_UP)
        run.server.forget_statistics()
        cpu = run.server.cpu_time_us()
        figures = await drive(who, call, callers, run.seconds(0.5))
        calls, cpu = figures["calls"], run.server.cpu_time_us() - cpu
        return {
            "command_us": run.server.command_time_us() / calls,
            "server_cpu_us": cpu / calls,
            **figures,
        }


async def measure(run: Run) -> None:
    five = Contender(f"stanchion, {LIMITS}", partial(checked, run.url, LIMITS))
    measured = [
        (who.name if callers == 1 else f"{who.name}, batched", who, callers)
        for callers in (1, CALLERS)
        for who in [*rates.contenders(run.url, callers), five]
        if callers == 1 or who.name.startswith(("stanchion", rates.BY_HAND))
    ]
    chosen = [asked for asked in measured if not run.only or asked[1].name in run.only]
    results = Results(left_out=[gone for _, who, _ in chosen if (gone := who.missing)])
    present = [asked for asked in chosen if not asked[1].missing]
    for name, who, _ in present:
        results.rounds[name] = []
        if who.prove is not None:
            run.server.flush()
            await who.prove()
    for number in range(run.rounds):
        for name, who, callers in rotated(present, number):
            run.server.flush()
            results.rounds[name].append(await sample(run, who, callers))
    columns = [
        report.Column("in commands us", "command_us", ",.1f", ratio=True),
        report.Column("CPU us", "server_cpu_us", ",.1f", ratio=True),
    ]
    table = report.tabulate("the server's time for one decision", results, columns)
    of_floor = "in commands, of the minimal script's"
    goals = [
        *report.ratio_goal(
            results,
            ("stanchion", "bare EVALSHA"),
            "command_us",
            of_floor,
            1.1,
            at_least=False,
        ),
        *report.ratio_goal(
            results,
            ("stanchion, batched", "bare EVALSHA"),
            "command_us",
            f"{of_floor}, batched",
            1.0,
            at_least=False,
        ),
    ]
    run.add("server_time", results, table, goals)


if __name__ == "__main__":
    main("server_time", __doc__, measure)
