"""`stanchion compact`: the small files of a data lake, merged."""

import asyncio
import json as json_text
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from stanchion import ConfigError
from stanchion.cli.output import Exit, complain

_COMPACT = """Merge the small Parquet files of a data lake, each event once.

LAKE is a directory, or a URL such as s3://bucket/prefix. How to reach a bucket
and who we are comes from the environment (AWS_..., AZURE_...), or from --option.
No row is missing for a reader at any moment. What a compaction leaves undone
that is killed, the next one does.

The status is 1 if the store does not work, 2 for a mistake in the command.

\b
Examples:
  stanchion compact /var/lib/agents/lake
  stanchion compact s3://lake/events --prefix date=2026-01-31
  stanchion compact s3://lake/events --option region=eu-central-1 --json
"""


def add_to(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command("compact", help=_COMPACT)(_compact)


def _compact(
    lake: Annotated[str, typer.Argument(help="Where the files are.")],
    *,
    prefix: Annotated[
        str, typer.Option(help="Only what is below, such as date=2026-01-31.", show_default=False)
    ] = "",
    smaller_than: Annotated[
        int, typer.Option(min=1, metavar="BYTES", help="Only files that are smaller.")
    ] = 32_000_000,
    file_size: Annotated[
        int, typer.Option(min=1, metavar="BYTES", help="How much one merge takes at most.")
    ] = 128_000_000,
    settled: Annotated[
        str, typer.Option(metavar="DURATION", help="Only files that are older.")
    ] = "15m",
    stale: Annotated[
        str, typer.Option(metavar="DURATION", help="When an unfinished merge counts as abandoned.")
    ] = "1h",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="How to reach the bucket; may be given again."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    # The lake's packages are optional, and the other commands need none of them.
    from stanchion.observers.lake.compaction import compact

    options: dict[str, str] = {}
    for one in option or ():
        name, _, value = one.partition("=")
        if not name or not value:
            raise ConfigError.of("option", name, "expected KEY=VALUE")
        options[name] = value
    try:
        done = asyncio.run(
            compact(
                lake,
                options=options,
                prefix=prefix,
                smaller_than=smaller_than,
                file_size=file_size,
                settled=0 if settled == "0" else settled,
                stale=0 if stale == "0" else stale,
            )
        )
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - the store's own errors share no other base
        from stanchion.observers.lake.stores import cause

        complain(f"cannot compact: {cause(error)}")
        raise typer.Exit(Exit.FAILED) from None
    if json:
        sys.stdout.write(f"{json_text.dumps(asdict(done))}\n")
    else:
        sys.stdout.write(
            f"{done.inputs} files became {done.outputs}: {done.rows} rows,"
            f" {done.duplicates} more were there twice\n"
        )
        if done.skipped:
            sys.stdout.write(f"{done.skipped} partitions are in the hands of another process\n")
