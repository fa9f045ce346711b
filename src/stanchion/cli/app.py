"""The commands and their options; what each does is in a module of its own."""

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

import stanchion
from stanchion import ConfigError, StanchionError
from stanchion.cli import compacting, following
from stanchion.cli.doctoring import doctor
from stanchion.cli.halting import halt, halts, resume
from stanchion.cli.inspecting import inspect
from stanchion.cli.losing import lost
from stanchion.cli.output import Exit, complain
from stanchion.cli.overriding import override

_HELP = """One shared set of limits for many workers, checked atomically in Redis."""

_DEMO = """Run agent workers against one shared set of limits, and check that it held.

Worker processes run agent pipelines against a small local model endpoint,
under rate limits, a token quota, a cap on calls in flight and a circuit
breaker. In the middle of the run the provider fails. At the end everything is
counted again from the workers' own logs.

The status is 0 only if no limit was exceeded and every worker learned of the
circuit; 1 if a check failed, 2 for a mistake in the command, 130 after Ctrl-C.

\b
Examples:
  stanchion demo
  stanchion demo --workers 8 --seconds 30
  stanchion demo --url redis://localhost:6379/0
  stanchion demo --trace calls.csv --speed 200
  stanchion demo --json > summary.json
"""

_INSPECT = """Show what is stored: one line for each key, or everything about one KEY.

The status is 1 if the store cannot be reached, 2 for a mistake in the command.

\b
Examples:
  stanchion inspect
  stanchion inspect --policy tokens
  stanchion inspect --url unix:///run/redis.sock --namespace staging
  stanchion inspect 'stanchion:{default}:circuit:provider:m1'
  stanchion inspect --json | jq '.[] | select(.share > 0.8) | .key'

\b
The lines of one key are those of
  redis-cli --eval lua/inspect.lua 'stanchion:{default}:circuit:provider:m1'
"""

_OVERRIDE = """Give one subject a LIMIT of its own; with --remove, take it away.

It is kept in Redis and in force for every worker with the next decision.
The KEY is the subject's, as `stanchion inspect` shows it; nothing has to be
stored under it yet. A burst that was not declared apart from the limit
follows it.

The status is 1 if the store cannot be reached, 2 for a mistake in the command.

\b
Examples:
  stanchion override 'stanchion:{default}:rate:calls:acme:m1' 1200
  stanchion override 'stanchion:{default}:quota:tokens:acme' 5000000
  stanchion override 'stanchion:{default}:quota:tokens:acme' --remove
"""

_HALT = """Stop events, in every worker that has a KillSwitch.

It is in force at once, also for workers that hold leases or remember answers,
and lasts until `stanchion resume`. The status is 1 if the store cannot be
reached, 2 for a mistake in the command.

\b
Examples:
  stanchion halt redis://db:6379/0 --on 'llm:*' --who alice --why costs
  stanchion halt --on 'llm:*' --by tenant=acme --who ops --why abuse --for 1h
"""

_RESUME = """Let go on what was halted: all of it, or what --on and --by name.

\b
Examples:
  stanchion resume redis://localhost:6379/0
  stanchion resume --on 'llm:*' --by tenant=acme
"""

_HALTS = """List what is halted, by whom and why."""

_LOST = """Say that all state of a namespace has been lost, as of now.

Workers that knew it before notice by themselves when a server has come back
empty. Nobody does where the whole fleet starts anew together with the server,
or where the server has come back with an old snapshot; then whoever knows says
so with this. Nothing is deleted: limits of which nothing is stored begin as
their policies' cold_start says.

The status is 1 if the store cannot be reached, 2 for a mistake in the command.

\b
Examples:
  stanchion lost redis://localhost:6379/0
  stanchion lost redis+cluster://db:6379 --namespace agents --shards 64
  stanchion lost --restore
"""

_DOCTOR = """Look at the server that keeps the limits, as a worker with this URL would see it.

What it is and whether it has the fix of a grave flaw, scripts, the user's
rights, TLS, eviction, memory, persistence, replication, clock and latency;
with Cluster and Sentinel also these. Nothing is written.

The status is 0 if nothing is wrong, 1 for an error or, with --strict, a
warning, 2 for a mistake in the command, 3 if there is no connection.

\b
Examples:
  stanchion doctor redis://localhost:6379/0
  stanchion doctor --strict --json | jq '.findings[] | select(.remedy)'
"""

_Place = Annotated[
    str, typer.Argument(envvar="STANCHION_URL", help="The store that the workers use.")
]
_Namespace = Annotated[
    str, typer.Option(envvar="STANCHION_NAMESPACE", help="The workers' namespace.")
]
_By = Annotated[
    list[str] | None,
    typer.Option(metavar="FIELD=VALUE", help="Only events with this value; can be repeated."),
]
_LOCAL = "redis://localhost:6379/0"

_app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
following.add_to(_app)
compacting.add_to(_app)


def run() -> int:
    """Run what `sys.argv` says; get the status to exit with."""
    try:
        status: object = _app(prog_name="stanchion")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except ConfigError as error:
        complain(str(error))
        return Exit.USAGE
    except StanchionError as error:
        complain(str(error))
        return Exit.FAILED
    return status if isinstance(status, int) else Exit.OK


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer passes it so
    if wanted:
        sys.stdout.write(f"stanchion {stanchion.__version__}\n")
        raise typer.Exit


@_app.callback()
def _main(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    del version


@_app.command("demo", help=_DEMO)
def _demo(
    *,
    url: Annotated[
        str,
        typer.Option(
            envvar="STANCHION_DEMO_URL",
            help="The store. By default a real Valkey server is started, and stopped at the end. "
            "In any other, the demo keeps to a namespace of its own.",
        ),
    ] = "embedded://",
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 4,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=5.0,
            max=3600.0,
            show_default="12, or until the trace ends",
            help="How long the load lasts.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Recorded calls instead of agents: CSV with the columns TIMESTAMP, "
            "ContextTokens and GeneratedTokens.",
        ),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            show_default="what makes it last 15 s",
            help="How many times faster the recorded calls come.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON; progress on standard error.")
    ] = False,
    logs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the workers' logs in this directory."),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Leave the server running until Enter or Ctrl-C."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Makes another load.")] = 1,
) -> None:
    if speed is not None and trace is None:
        raise typer.BadParameter("it is for --trace", param_hint="--speed")
    if importlib.util.find_spec("aiohttp") is None:
        raise StanchionError('the demo needs aiohttp: pip install "stanchion[demo]"')
    from stanchion.cli.demo.parent import demo
    from stanchion.cli.demo.setup import Options

    options = Options(
        url=url,
        workers=workers,
        seconds=seconds,
        trace=trace,
        speed=speed,
        logs=logs,
        as_json=json,
        keep=keep,
        seed=seed,
    )
    raise typer.Exit(asyncio.run(demo(options)))


@_app.command("inspect", help=_INSPECT)
def _inspect(
    key: Annotated[
        str | None,
        typer.Argument(help="A state key: stanchion:{<namespace>}:<kind>:<policy>:<subject>."),
    ] = None,
    *,
    url: Annotated[
        str, typer.Option(envvar="STANCHION_URL", help="The store that the workers use.")
    ] = "redis://localhost:6379/0",
    namespace: Annotated[
        str, typer.Option(envvar="STANCHION_NAMESPACE", help="The workers' namespace.")
    ] = "default",
    policy: Annotated[str | None, typer.Option(help="Only the keys of this policy.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    if key is not None and policy is not None:
        raise typer.BadParameter("give a KEY or --policy, not both", param_hint="--policy")
    raise typer.Exit(asyncio.run(inspect(url, namespace, policy, key, as_json=json)))


@_app.command("override", help=_OVERRIDE)
def _override(
    key: Annotated[
        str,
        typer.Argument(help="A state key: stanchion:{<namespace>}:<kind>:<policy>:<subject>."),
    ],
    limit: Annotated[
        int | None, typer.Argument(help="The subject's own limit, in the policy's units.")
    ] = None,
    *,
    burst: Annotated[
        int | None, typer.Option(help="Of a rate limit, where it is not to follow.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Back to the declared limit.")] = False,
    url: Annotated[
        str, typer.Option(envvar="STANCHION_URL", help="The store that the workers use.")
    ] = "redis://localhost:6379/0",
) -> None:
    if remove == (limit is not None):
        raise typer.BadParameter("give either a LIMIT or --remove", param_hint="LIMIT")
    if burst is not None and limit is None:
        raise typer.BadParameter("it goes with a LIMIT", param_hint="--burst")
    raise typer.Exit(asyncio.run(override(url, key, limit, burst)))


@_app.command("halt", help=_HALT)
def _halt(
    url: _Place = _LOCAL,
    *,
    on: Annotated[str, typer.Option(help="An event type, or a glob such as 'llm:*'.")],
    who: Annotated[str, typer.Option(help="Who stops it.")],
    why: Annotated[str, typer.Option(help="The reason; callers are told.")],
    by: _By = None,
    last: Annotated[
        str | None, typer.Option("--for", help="A duration after which it goes on by itself.")
    ] = None,
    namespace: _Namespace = "default",
) -> None:
    raise typer.Exit(asyncio.run(halt(url, namespace, on, by or (), who, why, last)))


@_app.command("resume", help=_RESUME)
def _resume(
    url: _Place = _LOCAL,
    *,
    on: Annotated[str | None, typer.Option(help="What was halted; by default all of it.")] = None,
    by: _By = None,
    namespace: _Namespace = "default",
) -> None:
    if by and on is None:
        raise typer.BadParameter("it goes with --on", param_hint="--by")
    raise typer.Exit(asyncio.run(resume(url, namespace, on, by or ())))


@_app.command("halts", help=_HALTS)
def _halts(
    url: _Place = _LOCAL,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    namespace: _Namespace = "default",
) -> None:
    raise typer.Exit(asyncio.run(halts(url, namespace, as_json=json)))


@_app.command("lost", help=_LOST)
def _lost(
    url: _Place = _LOCAL,
    *,
    restore: Annotated[bool, typer.Option("--restore", help="Nothing was lost after all.")] = False,
    shards: Annotated[
        int, typer.Option(min=0, max=1024, help="Over how many the namespace is spread.")
    ] = 0,
    namespace: _Namespace = "default",
) -> None:
    raise typer.Exit(asyncio.run(lost(url, namespace, shards, restore=restore)))


@_app.command("doctor", help=_DOCTOR)
def _doctor(
    url: _Place = _LOCAL,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    namespace: _Namespace = "default",
    deadline: Annotated[
        float, typer.Option(min=0.1, max=600.0, help="Seconds that all of it may take.")
    ] = 5.0,
    replicas: Annotated[
        int, typer.Option(min=0, max=100, help="The most that a quota waits for: its `replicas`.")
    ] = 0,
) -> None:
    status = doctor(url, namespace, deadline, strict=strict, as_json=json, replicas=replicas)
    raise typer.Exit(asyncio.run(status))
