"""Two versions of this library at one server: during a deployment, or by mistake."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import ConfigError, Permit
from stanchion.store.scripts import Scripts, lua_directory, read_sources
from tests.faults.calls import DEADLINE, ask, bus_on, chain, charged, in_use, state

if TYPE_CHECKING:
    from stanchion import EventBus
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer

SCHEMA = "local SCHEMA = '1'"
CALLERS = 10


def next_version(url: str, monkeypatch: pytest.MonkeyPatch) -> EventBus:
    """Get a bus that runs scripts which write, and read, states of another schema."""
    sources = dict(read_sources(lua_directory()))
    assert SCHEMA in sources["include/cells"]
    sources["include/cells"] = sources["include/cells"].replace(SCHEMA, "local SCHEMA = '2'")
    with monkeypatch.context() as patch:
        made = "stanchion.store.redis_store.load_scripts"
        patch.setattr(made, lambda *, clock: Scripts(sources, clock=clock))
        return bus_on(url, chain())


async def test_two_versions_under_load_never_touch_each_others_states(
    server: RealServer, monkeypatch: pytest.MonkeyPatch, fault_record: FaultRecords
):
    """Whoever came first has a subject; the other is denied it, and writes nothing to it."""
    record = fault_record(30, "old and new scripts over the same keys", server, deadline=DEADLINE)
    later = next_version(server.url, monkeypatch)
    async with bus_on(server.url, chain()) as old, later as new:
        first = {"old": old, "new": new}
        for who, bus in first.items():
            assert await ask(bus, record, who=who)

        async def work(bus: EventBus, mine: str, theirs: str) -> int:
            admitted = 0
            for _ in range(20):
                decision = await ask(bus, record, who=mine)
                assert decision.permit is not None
                admitted += 1
                assert await bus.settle(decision.permit)
                refused = await ask(bus, record, who=theirs)
                assert (refused.allowed, refused.reason) == (False, "state_corrupt")
            return admitted

        ran = await asyncio.gather(
            *(work(old, "old", "new") for _ in range(CALLERS)),
            *(work(new, "new", "old") for _ in range(CALLERS)),
        )
        assert sum(ran) == 2 * CALLERS * 20
        for who, version in (("old", "1"), ("new", "2")):
            assert charged(server, who) == 1 + sum(ran) // 2
            assert in_use(server, who) == 1
            for kind, policy in (("quota", "tokens"), ("circuit", "provider")):
                assert state(server, kind, policy, who)["v"] == version
            record.charge(charged(server, who))
        # An operator's reset is the way over, and takes whichever it was.
        with record.recovering():
            for policy in ("calls", "tokens", "slots", "provider"):
                assert await new.reset(policy, who="old") == 1
            assert await ask(new, record, who="old")
        assert charged(server, "old") == 1
        record.charge(1)


def rewritten(permit: Permit, **changes: Any) -> str:
    """Get a permit's text as the first version wrote it: nine numbers for each hold."""
    body = str(permit).removeprefix("stp1.")
    document = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    document["h"] = [row[:9] for row in document["h"]]
    text = json.dumps(document | changes).encode()
    return "stp1." + base64.urlsafe_b64encode(text).decode().rstrip("=")


async def test_permits_of_the_first_version_are_settled_and_those_of_a_later_one_refused(
    server: RealServer, fault_record: FaultRecords
):
    """A permit outlives a deployment; what cannot be understood settles nothing."""
    record = fault_record(30, "permits of another version", server, deadline=DEADLINE)
    async with bus_on(server.url) as bus:
        decision = await ask(bus, record, tokens=5)
        assert decision.permit is not None
        text = str(decision.permit)
        for later in (text.replace("stp1.", "stp2.", 1), text[:-8], f"{text}x"):
            with pytest.raises(ConfigError, match="permit"):
                Permit.parse(later)
            record.saw("a later one: `ConfigError`")
        assert (charged(server), in_use(server)) == (5, 1)
        first = Permit.parse(rewritten(decision.permit))
        assert await bus.settle(first, tokens=3)
        record.saw("the first: settled")
        assert (charged(server), in_use(server)) == (3, 0)
        # It is the same admission, by whichever text.
        assert set((await bus.settle(decision.permit)).stale) >= {"tokens", "slots"}
        assert charged(server) == 3
        record.charge(1)
