"""Reading circuits' current states in the form in which their changes are published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stanchion.decisions import CircuitState
from stanchion.states import parse_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stanchion.store.protocol import Store

_KINDS = {
    CircuitState.CLOSED: "closed",
    CircuitState.OPEN: "opened",
    CircuitState.HALF_OPEN: "halfopened",
    CircuitState.FORCED_OPEN: "forced",
    CircuitState.DISABLED: "forced",
}


class CircuitStates:
    """Reads the circuits that changed within a day, for whoever may have missed a message."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def __call__(self, key: str | None = None, /) -> Iterable[Mapping[str, str]]:
        """Get a payload for each circuit, or for one key."""
        changed = await self._store.changed_circuits()
        keys = changed if key is None else [key]
        found = [await self._payload(name, changed.get(name, 0)) for name in keys]
        return [payload for payload in found if payload is not None]

    async def _payload(self, key: str, changed_us: int) -> Mapping[str, str] | None:
        state = parse_state(await self._store.inspect(key))
        values = state.values
        if state.kind != "circuit" or (state.error is not None and "state" not in values):
            return None
        payload = {"v": "1", "key": key, "policy": state.policy, "subject": state.subject}
        if "absent" in values:
            # It was reset: what comes later has a later sequence, which starts at its own time.
            at = str(changed_us)
            return payload | {
                "type": "circuit:closed",
                "state": CircuitState.CLOSED,
                "seq": at,
                "generation": at,
                "at_us": at,
                "reason": "reset",
            }
        try:
            current = CircuitState(values.get("forced") or values["state"])
            return payload | {
                "type": f"circuit:{_KINDS[current]}",
                "state": current.value,
                "seq": values["seq"],
                "generation": values["gen"],
                "at_us": values["changed"],
                "open_until_us": values["open_until"] if current is CircuitState.OPEN else "0",
                "reason": "resync",
            }
        except (KeyError, ValueError):
            # A state that cannot be read is denied as such; the others are still to be told.
            return None
