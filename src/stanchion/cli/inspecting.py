"""`stanchion inspect`: what the keys say, through the same script that redis-cli can run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from stanchion.cli.output import Exit, cell, complain, console, print_json, say
from stanchion.cli.places import check_shared, shown
from stanchion.cli.reading import span, usage_of
from stanchion.errors import StoreUnavailable
from stanchion.states import parse_state, walk_states
from stanchion.store.keys import Keyspace
from stanchion.store.redis_store import RedisStore

if TYPE_CHECKING:
    from stanchion import PolicyState

_DEADLINE = 2.0
_STYLES = {
    "open": "red",
    "forced_open": "red",
    "half_open": "yellow",
    "closed": "green",
    "full": "yellow",
    "unreadable": "red",
}


async def inspect(
    url: str, namespace: str, policy: str | None, key: str | None, *, as_json: bool
) -> Exit:
    """Print the state of every key of a namespace, of one policy's, or all lines of one key.

    Raises:
        ConfigError: the URL or the namespace cannot work.
    """
    check_shared(url)
    keyspace = Keyspace(namespace)
    store = RedisStore(url, keyspace, deadline=_DEADLINE)
    try:
        await store.open()
        if key is not None:
            return _print_key(await store.inspect(key), as_json=as_json)
        spread = await store.spread()
        states = [state async for state in walk_states(store, spread, policy)]
    except StoreUnavailable as error:
        complain(f"cannot read {shown(url)}: {error}")
        return Exit.FAILED
    finally:
        await store.close()
    states.sort(key=lambda state: (state.kind, state.policy, state.subject))
    if as_json:
        print_json([_as_json(state) for state in states])
    elif states:
        console().print(table_of(states))
    else:
        whose = f"policy {policy!r}" if policy else "any policy"
        complain(f"no state of {whose} in namespace {namespace!r} of {shown(url)}")
    return Exit.OK


def table_of(states: list[PolicyState]) -> Table:
    """Get a table with one line for each state."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("policy", "kind", "subject", "used", "state", "next", "ttl"):
        table.add_column(column, justify="right" if column in {"used", "ttl"} else "left")
    for state in states:
        usage = usage_of(state)
        subject = state.subject if len(state.subject) <= 40 else state.subject[:39] + "…"
        table.add_row(
            cell(state.policy),
            cell(state.values.get("declared.kind", state.kind)),
            cell(subject),
            cell(usage.amount),
            cell(usage.state, _STYLES.get(usage.state, "")),
            cell(usage.coming),
            cell("-" if state.ttl is None else span(state.ttl)),
        )
    return table


def _print_key(lines: tuple[str, ...], *, as_json: bool) -> Exit:
    state = parse_state(lines)
    if as_json:
        print_json(dict(state.values))
    else:
        for line in lines:
            name, _, value = line.partition(" ")
            say(f"{name:<24} {value}")
    if "namespace" not in state.values:
        complain(state.error or "not a state key")
        return Exit.USAGE
    return Exit.OK


def _as_json(state: PolicyState) -> dict[str, Any]:
    document = asdict(usage_of(state))
    return {
        "key": state.key,
        "kind": state.values.get("declared.kind", state.kind),
        "policy": state.policy,
        "subject": state.subject,
        "by": list(state.by),
        "ttl": state.ttl,
        **document,
        "values": dict(state.values),
    }
