"""Whatever users call themselves, subjects stay apart, on one slot, and without an error."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from stanchion import CircuitState, EventBus, Outcome, Permit, RateLimit
from stanchion.events import CircuitOpened
from stanchion.observers import Recorder
from stanchion.store.keys import values_of
from tests.busses import command
from tests.security.hostile import (
    NAMESPACE,
    NASTY,
    PART,
    TINY,
    VALUES,
    Request,
    check_keys,
    every_kind,
    same,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from tests.conftest import Pool
    from tests.servers import RealServer
    from tests.topologies import Cluster

    Scene = Callable[[Callable[[EventBus], Coroutine[Any, Any, None]], tuple[Any, ...]], None]

FEW = settings(
    max_examples=15,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(params=["memory", "valkey9"])
def scene(request: pytest.FixtureRequest, pool: Pool) -> Iterator[Scene]:
    """Runs a coroutine with a bus on an empty store, as often as asked."""
    url = "memory://" if request.param == "memory" else pool.server(request.param).url
    with asyncio.Runner() as runner:

        def run(play: Callable[[EventBus], Coroutine[Any, Any, None]], policies: Any) -> None:
            async def act() -> None:
                options = {"namespace": NAMESPACE, "deadline": 10, "cache_denials": False}
                async with EventBus.from_url(url, policies=policies, **options) as bus:
                    await command(bus, "FLUSHALL")
                    await play(bus)

            runner.run(act())

        yield run


async def keys(bus: EventBus) -> list[str]:
    return check_keys(await command(bus, "KEYS", "*"))


async def is_admitted(bus: EventBus, **fields: Any) -> Permit | None:
    decision = await bus.check(Request(**fields))
    assert decision.reason in {None, "limit_reached"}, decision
    for verdict in decision.verdicts:
        assert verdict.reason in {"ok", "limit_reached"}
    return decision.permit


def is_whole(value: str | None) -> bool:
    """Whether a key can carry a value as it is, rather than a digest of it."""
    if value is None:
        return True
    plain = [letter for letter in value if PART.fullmatch(letter) and letter not in "%~:"]
    size = len(value.encode("utf-8", "surrogatepass"))
    return len(value) <= 100 and len(plain) + 3 * (size - len(plain)) <= 100


@FEW
@given(values=st.lists(VALUES, min_size=1, max_size=5))
def test_values_are_one_subject_when_they_are_the_same_text_and_else_never(scene: Scene, values):
    async def play(bus: EventBus) -> None:
        first: dict[str | None, Any] = {}
        permits: list[Permit] = []
        for value in values:
            permit = await is_admitted(bus, user=value)
            assert (permit is not None) is (same(value) not in first), (value, first)
            first.setdefault(same(value), value)
            permits += [permit] if permit else []
        assert len(await keys(bus)) == 7 * len(first)
        states = [state async for state in bus.inspect()]
        assert {state.error for state in states} == {None}
        # What a key says, whole, is what the user said.
        wanted = {value for value in first if is_whole(value)}
        assert {state.by[0] for state in states} >= wanted
        for permit in permits:
            again = Permit.parse(str(permit))
            assert again == permit
            assert set((await bus.settle(again)).statuses.values()) == {"settled"}
        for value in first.values():
            await bus.override("rate", 7, user=value)
            assert (await bus.peek(Request(user=value))).verdicts[0].limit == 7
            await bus.override("rate", None, user=value)
            assert await bus.reset("rate", user=value) == 1
            assert await bus.force("breaker", CircuitState.FORCED_OPEN, user=value) == "closed"
            assert (await bus.check(Request(user=value))).reason == "forced_open"
        await keys(bus)
        assert await bus.reset("breaker") == len(first)
        assert all([(await bus.peek(Request(user=value))).allowed for value in first.values()])

    scene(play, every_kind())


@FEW
@given(
    pairs=st.lists(
        st.tuples(TINY | st.sampled_from([None, "a" * 101]), TINY | st.none()),
        min_size=2,
        max_size=6,
    )
)
@pytest.mark.parametrize("private", [False, True])
def test_what_one_field_ends_with_is_never_what_the_next_begins_with(scene: Scene, private, pairs):
    async def play(bus: EventBus) -> None:
        seen: set[tuple[str | None, str | None]] = set()
        for user, other in pairs:
            place = {"other": other, "metadata": {"at": {"user": user}}}
            admitted = await is_admitted(bus, **place)
            assert (admitted is not None) is ((same(user), same(other)) not in seen)
            seen.add((same(user), same(other)))
        assert len(await keys(bus)) == len(seen)
        if not private:
            # One field of the two: all that begin with it, and no others.
            user = pairs[0][0]
            count = len([one for one, _ in seen if one == same(user)])
            assert await bus.reset("rate", **{"metadata.at.user": user}) == count

    by = ("metadata.at.user", "other")
    policy = RateLimit(name="rate", on=Request, by=by, limit=1, per="1h", private=private)
    scene(play, (policy,))


def test_a_megabyte_is_told_apart_by_its_last_letter(scene: Scene):
    async def play(bus: EventBus) -> None:
        for stem in ("x", "é", "\x00", "🦀"):
            long = stem * 1_000_000
            assert await is_admitted(bus, user=long + "a")
            assert not await is_admitted(bus, user=long + "a")
            assert await is_admitted(bus, user=long + "b")
            assert await bus.reset("rate", user=long + "b") == 1
        assert max(map(len, await keys(bus))) < 200

    scene(play, every_kind())


def test_no_key_of_a_line_or_an_index_is_elsewhere(scene: Scene):
    """Those who wait, denials that are kept, and limits set for one subject have keys as well."""

    async def play(bus: EventBus) -> None:
        some = NASTY[:40:3]
        for value in some:
            assert await is_admitted(bus, user=value)
        waiting = [asyncio.create_task(bus.admit(Request(user=v), wait=60)) for v in some]

        async def all_wait() -> bool:
            lines = [key for key in await keys(bus) if ".order:" in key or ".alive:" in key]
            return len(lines) == 2 * len(some)

        await eventually(all_wait, what="everybody stands in a line")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    scene(play, every_kind())


async def test_no_server_chooses_another_slot(cluster: Cluster):
    """By the server's own word, for every key that there is on any node."""
    options: dict[str, Any] = {"namespace": NAMESPACE, "deadline": 10}
    async with EventBus.from_url(cluster.url, policies=every_kind(), **options) as bus:
        for value in NASTY:
            await is_admitted(bus, user=value)
            await is_admitted(bus, user=value)
            await bus.override("rate", 9, user=value)
        found = [key for node in cluster.nodes for key in node.execute("KEYS", "*")]
        check_keys([key.encode() for key in found])
        assert any(key.endswith(":denied") for key in found)
        members = await command(bus, "ZRANGE", f"stanchion:{{{NAMESPACE}}}:denied", "0", "-1")
        fields = await command(bus, "HKEYS", f"stanchion:{{{NAMESPACE}}}:overrides")
        node = cluster.nodes[0]
        slots = {node.execute("CLUSTER", "KEYSLOT", key) for key in [*found, *members]}
        assert slots == {key_slot(NAMESPACE.encode())}
        assert all(PART.fullmatch(field.decode()) for field in fields)
        for value in NASTY:
            await bus.override("rate", None, user=value)


async def test_what_is_told_of_a_circuit_names_its_subject(valkey: RealServer):
    """To every process, over the control channel, as the keys do."""
    recorder = Recorder()
    options: dict[str, Any] = {"namespace": NAMESPACE, "deadline": 10}
    policies = every_kind()[3:]
    async with (
        EventBus.from_url(valkey.url, policies=policies, **options) as bus,
        EventBus.from_url(valkey.url, observers=[recorder], **options),
    ):
        wanted = {same(value) for value in NASTY if is_whole(same(value))}
        for value in NASTY:
            if (permit := (await bus.check(Request(user=value))).permit) is not None:
                assert await bus.settle(permit, Outcome.FAILURE)

        def told() -> bool:
            opened = [event for event in recorder.events if isinstance(event, CircuitOpened)]
            assert all(PART.fullmatch(event.subject) for event in opened)
            return {values_of(event.subject)[0] for event in opened} >= wanted

        await eventually(told, what="every circuit that opened is told of")
