"""The commands that follow events: `stanchion tail` and `stanchion observe`, and their options."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

_TAIL = """Show events as they happen, or as a Redis Stream has kept them.

By default those that workers publish over pub/sub (redis_pubsub), and what
the shared state itself tells of circuits and quotas. With --stream or --from,
those of the stream that the observer redis_stream writes. With --dead, from
the start unless --from says otherwise, those that an observer of
`stanchion observe --stream` would not take, each with the observer and why.

It ends after --count events, with Ctrl-C (status 130), or when nobody reads
its output any more. The status is 1 if the store cannot be reached, 2 for a
mistake in the command. Colour is for terminals; NO_COLOR turns it off.

\b
Examples:
  stanchion tail redis://localhost:6379/0
  stanchion tail --on 'policy:*' --on circuit:opened
  stanchion tail --where tenant=acme --where 'model=gpt-*'
  stanchion tail --from 10m --json | jq .data
  stanchion tail --from start --count 20
  stanchion tail --dead
"""

_OBSERVE = """Run the observers of a file in a process of their own.

Workers then need none of what the observers need: they publish (redis_pubsub)
or append to a stream (redis_stream), and this process hands the events on.
FILE is one for EventBus.from_config; its policies are not asked here.

With --stream, each observer is a consumer group of its own, GROUP.NAME, and
an entry is acknowledged only when that observer has it: nothing is lost while
this process or a receiver is away. An event that an observer will not take is
a dead letter: `stanchion tail --dead`. Run several to share the work. Without
it, events come over pub/sub: what is published while nobody listens is lost.

SIGTERM and Ctrl-C end it: what is in hand is delivered first. The status is 0
after SIGTERM, 130 after Ctrl-C, 1 if the store cannot be reached or events
were lost, 2 for a mistake in the command or the file.

\b
Example of FILE:
  url: redis://localhost:6379/0
  observers:
    - {kind: jsonl, path: /var/log/agents/events.jsonl}
    - {kind: slack, url: "${SLACK_URL}", on: "policy:*"}

\b
Examples:
  stanchion observe --config observers.yaml --stream
  stanchion observe --config observers.yaml --json --every 60
"""


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command("tail", help=_TAIL)(_tail)
    app.command("observe", help=_OBSERVE)(_observe)


def _tail(
    url: Annotated[
        str, typer.Argument(envvar="STANCHION_URL", help="The store that the workers use.")
    ] = "redis://localhost:6379/0",
    *,
    stream: Annotated[
        bool, typer.Option("--stream", help="From the Redis Stream rather than from pub/sub.")
    ] = False,
    dead: Annotated[
        bool,
        typer.Option("--dead", help="What an observer of that stream would not take."),
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="ID",
            help="Where in the stream to begin: start, now, after an entry's id, or a duration "
            "ago, as in 10m.",
        ),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only events of this type; may be given several times."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="Only events with this value, which may hold * and ?; the field may be dotted. "
            "Several must all hold.",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many events.", show_default=False)
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of CloudEvents JSON.")
    ] = False,
    namespace: Annotated[
        str, typer.Option(envvar="STANCHION_NAMESPACE", help="The workers' namespace.")
    ] = "default",
    key: Annotated[
        str | None,
        typer.Option(help="The stream's key, where it is not the namespace's.", show_default=False),
    ] = None,
) -> None:
    from stanchion.cli.tailing import Filter, Tail, start_of, tail

    is_stream = stream or dead or start is not None or key is not None
    wanted = Tail(
        url=url,
        namespace=namespace,
        filter=Filter.of(on or (), where or ()),
        start=start_of(start or ("start" if dead else "now")) if is_stream else None,
        key=key,
        dead=dead,
        count=count,
        as_json=json,
    )
    raise typer.Exit(asyncio.run(tail(wanted)))


def _observe(
    *,
    config: Annotated[
        Path, typer.Option(metavar="FILE", help="The YAML file that names the observers.")
    ],
    stream: Annotated[
        bool, typer.Option("--stream", help="From the Redis Stream rather than from pub/sub.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="ID",
            help="Where a group begins that there was not before: start, now, after an entry's id, "
            "or a duration ago, as in 10m.",
            show_default="start",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="The stream's key, where it is not the namespace's.", show_default=False),
    ] = None,
    group: Annotated[
        str, typer.Option(help="What the names of the consumer groups begin with.")
    ] = "observe",
    claim_after: Annotated[
        str, typer.Option(help="How long another process is silent before its work is taken over.")
    ] = "30s",
    every: Annotated[
        float, typer.Option(min=0.1, help="Seconds between lines on how far each observer is.")
    ] = 10.0,
    drain: Annotated[
        float, typer.Option(min=0.0, help="Seconds that the end may take to deliver the rest.")
    ] = 5.0,
    attempts: Annotated[
        int,
        typer.Option(
            min=1,
            help="With --stream: after how many calls an event that an observer does not take, "
            "while it takes others, is a dead letter.",
        ),
    ] = 12,
    json: Annotated[
        bool, typer.Option("--json", help="Print the numbers as lines of JSON.")
    ] = False,
) -> None:
    from stanchion.cli.observing import Observe, observe
    from stanchion.cli.tailing import start_of

    is_stream = stream or start is not None or key is not None
    wanted = Observe(
        config=config,
        start=start_of(start or "start") if is_stream else None,
        key=key,
        group=group,
        claim_after=claim_after,
        every=every,
        drain=drain,
        attempts=attempts,
        as_json=json,
    )
    raise typer.Exit(asyncio.run(observe(wanted)))
