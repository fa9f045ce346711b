"""Looking at shared state: what each live key says, as values."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from stanchion.store.keys import Kind, values_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Store

FAMILIES = tuple(dict.fromkeys(kind.family for kind in Kind))


@dataclass(frozen=True, slots=True)
class PolicyState:
    """One policy's stored state for one subject.

    `by` are the values of the policy's `by` fields in order, `ttl` the seconds until the key goes
    by itself, and `values` every line that the inspect script wrote, by name.
    """

    key: str
    kind: str
    policy: str
    subject: str
    by: tuple[str | None, ...]
    ttl: float | None
    values: Mapping[str, str]

    @property
    def error(self) -> str | None:
        """What makes the state unreadable, None where it is sound."""
        return self.values.get("error")


def parse_state(lines: tuple[str, ...]) -> PolicyState:
    """Get the state that "name value" lines describe."""
    values: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(" ")
        values[name] = value
    subject = values.get("subject", "")
    ttl = values.get("ttl")
    return PolicyState(
        values.get("key", ""),
        values.get("kind", ""),
        values.get("policy", ""),
        subject,
        values_of(subject),
        None if ttl is None else float(ttl),
        MappingProxyType(values),
    )


async def walk_states(
    store: Store, keyspace: Keyspace, policy: str | None
) -> AsyncIterator[PolicyState]:
    """Get a state for each live key of a policy, or of all, registered here or not."""
    seen: set[str] = set()
    for prefix in keyspace.prefixes:
        async for key in store.keys(f"{prefix}*:{policy or '*'}:*"):
            family = key.partition("}:")[2].partition(":")[0]
            if family not in FAMILIES or key in seen:
                continue
            seen.add(key)
            state = parse_state(await store.inspect(key))
            # A key may end between the walk and the look.
            if "absent" not in state.values and (policy is None or state.policy == policy):
                yield state
