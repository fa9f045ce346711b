"""What becomes of a policy when it comes to a bus: it is checked, and given what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stanchion.policies import BuiltInPolicy
from stanchion.policies.custom import NeedsStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from stanchion.events import Event
    from stanchion.local import LocalShares
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Store


class Intake:
    """Receives the policies of one bus."""

    def __init__(
        self,
        local: LocalShares,
        store: Store,
        keyspace: Keyspace,
        notify: Callable[[Event], None],
    ) -> None:
        self._local = local
        self._store = store
        self._keyspace = keyspace
        self._notify = notify

    def __call__(self, policy: object) -> None:
        """Receive a policy.

        Raises:
            ConfigError: it cannot work on this bus.
        """
        self._local.check(policy)
        if isinstance(policy, BuiltInPolicy) and policy.copies:
            self._store.expect_copies(policy.copies)
        if not isinstance(policy, BuiltInPolicy) and isinstance(policy, NeedsStore):
            policy.attach(self._store, self._keyspace, self._notify)
