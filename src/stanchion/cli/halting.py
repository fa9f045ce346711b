"""`stanchion halt`, `resume` and `halts`: what the kill switches of all workers stop."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from stanchion.cli.output import Exit, cell, complain, console, print_json, say
from stanchion.cli.places import check_shared, shown
from stanchion.cli.reading import span
from stanchion.durations import seconds
from stanchion.errors import ConfigError, StoreUnavailable
from stanchion.store.halts import Halts, checked
from stanchion.store.keys import Keyspace
from stanchion.store.redis_store import RedisStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from stanchion.store.halts import Halt

_DEADLINE = 2.0


async def halt(
    url: str, namespace: str, on: str, by: Sequence[str], who: str, why: str, last: str | None
) -> Exit:
    """Stop events in every worker of a namespace that has a kill switch.

    Raises:
        ConfigError: the URL, the namespace or another argument cannot work.
    """
    stopped = checked(on, who, why, _fields(by))
    ends = None if last is None else seconds(last, field="--for")
    try:
        async with _halts(url, namespace) as halts:
            new = await halts.halt(stopped, ends)
    except StoreUnavailable as error:
        complain(
            f"{shown(url)} did not answer, and whether anything is halted is not known: {error}"
        )
        return Exit.FAILED
    how = "until it is resumed" if ends is None else f"for {span(ends)}"
    again = "" if new else " (it was already)"
    say(f"{stopped.name} is halted in namespace {namespace} {how}{again}")
    return Exit.OK


async def resume(url: str, namespace: str, on: str | None, by: Sequence[str]) -> Exit:
    """Let go on what was halted: all of it, or what was halted with this `on` and `by`.

    Raises:
        ConfigError: the URL, the namespace or another argument cannot work.
    """
    fields = _fields(by)
    name = "" if on is None else checked(on, "-", "-", fields).name
    try:
        async with _halts(url, namespace) as halts:
            count = await halts.resume(name)
    except StoreUnavailable as error:
        complain(f"{shown(url)} did not answer, and whether anything goes on is not known: {error}")
        return Exit.FAILED
    if not count:
        complain(f"{name or 'nothing'} was halted in namespace {namespace} of {shown(url)}")
        return Exit.FAILED if name else Exit.OK
    say(f"{name or f'all that was halted ({count})'} goes on in {namespace}")
    return Exit.OK


async def halts(url: str, namespace: str, *, as_json: bool) -> Exit:
    """Print what is halted.

    Raises:
        ConfigError: the URL or the namespace cannot work.
    """
    try:
        async with _halts(url, namespace) as stored:
            found = await stored.read()
    except StoreUnavailable as error:
        complain(f"cannot read {shown(url)}: {error}")
        return Exit.FAILED
    if as_json:
        print_json([_as_json(one) for one in found])
    elif found:
        console().print(_table(found))
    else:
        complain(f"nothing is halted in namespace {namespace} of {shown(url)}")
    return Exit.OK


@asynccontextmanager
async def _halts(url: str, namespace: str) -> AsyncGenerator[Halts]:
    check_shared(url)
    keyspace = Keyspace(namespace)
    store = RedisStore(url, keyspace, deadline=_DEADLINE)
    try:
        await store.open()
        yield Halts(store, keyspace)
    finally:
        await store.close()


def _fields(by: Sequence[str]) -> Mapping[str, str]:
    fields: dict[str, str] = {}
    for text in by:
        name, sign, value = text.partition("=")
        if not (name and sign):
            raise ConfigError.of("--by", text, "expected a field and its value, tenant=acme")
        fields[name] = value
    return fields


def _table(found: Sequence[Halt]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("halted", "who", "why", "since", "ends in"):
        table.add_column(column)
    for one in found:
        since = "-" if one.at is None else f"{one.at:%Y-%m-%d %H:%M:%S}Z"
        ends = "-" if one.ends_in is None else span(one.ends_in)
        table.add_row(*map(cell, (one.name, one.who, one.why, since, ends)))
    return table


def _as_json(one: Halt) -> dict[str, object]:
    return {
        "on": one.on,
        "by": dict(one.by),
        "who": one.who,
        "why": one.why,
        "at": None if one.at is None else one.at.isoformat(),
        "until": None if one.until is None else one.until.isoformat(),
    }
