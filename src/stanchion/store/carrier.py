"""Batches of what is asked, as one script call each: written down, sent, and read back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stanchion.store import codec
from stanchion.store.scripts import ScriptName

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stanchion.store.awaited import Awaited
    from stanchion.store.calls import Calls
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Reply, Request
    from stanchion.store.scripts import Script, Scripts

    Failed = Callable[[BaseException], None]
    GiveUp = Callable[[], None]


class Carrier:
    """Sends batches of one kind each, to one hash tag each; see `batch.Launch`."""

    def __init__(self, calls: Calls, scripts: Scripts, worker: str) -> None:
        self._calls = calls
        self.scripts = scripts
        self.worker = worker
        #: For how long the caller keeps denials at most, in microseconds; 0 for not at all.
        self.keep_us = 0
        #: The epoch that is known under each hash tag.
        self.epochs: dict[str, str] = {}

    @property
    def replicated(self) -> bool:
        """Whether another server may come to take the place of this one."""
        return self._calls.connections.replicated

    def known(self, space: Keyspace) -> tuple[str, str]:
        """Get the key of an epoch, and the id that is known of it, empty for none."""
        return space.epoch, self.epochs.get(space.tag, "")

    def admissions(
        self,
        space: Keyspace,
        requests: Sequence[Request],
        landed: Callable[[Sequence[Reply]], None],
        failed: Failed,
        awaited: Awaited | None = None,
    ) -> GiveUp:
        """Decide and charge; with `awaited`, replicas have been waited for when it has landed."""
        shared = space.overrides, space.circuits, space.denied
        keys, args, kinds = codec.encode_requests(requests, shared, self.keep_us, self.known(space))
        script = self.scripts.get(ScriptName.ADMIT, kinds)
        return self._launch(
            script, keys, args, lambda raw: landed(codec.decode_replies(raw)), failed, awaited
        )

    def peeks(
        self,
        space: Keyspace,
        requests: Sequence[Request],
        landed: Callable[[Sequence[Reply]], None],
        failed: Failed,
    ) -> GiveUp:
        """Say what would be decided."""
        shared = space.overrides, space.circuits, space.denied
        keys, args, kinds = codec.encode_requests(requests, shared, epoch=self.known(space))
        script = self.scripts.get(ScriptName.PEEK, kinds)
        return self._launch(
            script, keys, args, lambda raw: landed(codec.decode_replies(raw)), failed
        )

    def settlements(
        self,
        space: Keyspace,
        settlements: Sequence[codec.Settlement],
        landed: Callable[[Sequence[tuple[str, ...]]], None],
        failed: Failed,
    ) -> GiveUp:
        """True up permits."""
        shared = space.circuits, space.denied
        keys, args, kinds = codec.encode_settlements(settlements, shared)
        script = self.scripts.get(ScriptName.SETTLE, kinds)
        args.insert(0, self.worker)
        return self._launch(
            script, keys, args, lambda raw: landed(codec.decode_statuses(raw)), failed
        )

    def renewals(
        self,
        space: Keyspace,
        renewals: Sequence[codec.Renewal],
        landed: Callable[[Sequence[tuple[int, ...]]], None],
        failed: Failed,
    ) -> GiveUp:
        """Lengthen leases."""
        del space
        keys, args, kinds = codec.encode_renewals(renewals)
        script = self.scripts.get(ScriptName.RENEW, kinds)
        return self._launch(
            script, keys, args, lambda raw: landed(codec.decode_lease_ends(raw)), failed
        )

    def _launch(
        self,
        script: Script,
        keys: list[str],
        args: list[str],
        answered: Callable[[list[Any]], None],
        failed: Failed,
        awaited: Awaited | None = None,
    ) -> GiveUp:
        return self._calls.launch(script, keys, args, answered, failed, awaited)
