"""A bus whose time a test moves, every script call on record, and what is stored laid open."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self, TypeVar, cast

import redis
from fakeredis import FakeRedis

from stanchion import EventBus
from stanchion.decisions import CircuitState
from stanchion.store import redis_store
from stanchion.store.carrier import Carrier
from stanchion.store.keys import Keyspace
from stanchion.store.protocol import Part, Reply, Request
from stanchion.store.redis_store import RedisStore
from stanchion.store.scripts import Scripts, load_scripts

T = TypeVar("T")

CLOCK = "stanchion:test:clock"
MARKS = "stanchion:test:marks"
NAMESPACE = "proof"
DEADLINE = 30.0
#: Clocks go forward in Europe three hours later, and the month ends three days later.
START = 1_774_735_200_000_000  # 2026-03-28T22:00:00Z
DAY_MS = 86_400_000
FAR_MS = 4_000_000_000_000
#: How much later than it says a machine may be that is slow.
SLOW_US = 60_000_000

Snapshot = dict[str, tuple[bytes, int]]


@dataclass(frozen=True)
class Asked:
    """A request as the script got it, and its reply."""

    request: Request
    reply: Reply
    charged: bool


@dataclass(frozen=True)
class Settled:
    permit: str
    outcome: str
    parts: tuple[Part, ...]
    worker: str
    statuses: tuple[str, ...]
    #: Those of one number travelled in one call.
    call: int = 0


@dataclass(frozen=True)
class Renewed:
    permit: str
    parts: tuple[Part, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Forced:
    key: str
    spec: str
    state: str
    previous: str


@dataclass(frozen=True)
class Reset:
    keys: tuple[str, ...]
    count: int


Call = Asked | Settled | Renewed | Forced | Reset
cached_scripts = cache(load_scripts)


class RecordingCarrier(Carrier):
    """Notes each call in the script's order, and chance is what it is told."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.luck = 0
        self.calls: list[Call] = []

    def _asked(self, requests: Sequence[Request]) -> list[Request]:
        return [request._replace(luck=self.luck) for request in requests]

    def admissions(
        self, space: Keyspace, requests: Sequence[Request], landed: Any, failed: Any
    ) -> Any:
        sent = self._asked(requests)

        def note(replies: Sequence[Reply]) -> None:
            self.calls += [Asked(*pair, charged=True) for pair in zip(sent, replies, strict=True)]
            landed(replies)

        return super().admissions(space, sent, note, failed)

    def peeks(self, space: Keyspace, requests: Sequence[Request], landed: Any, failed: Any) -> Any:
        sent = self._asked(requests)

        def note(replies: Sequence[Reply]) -> None:
            self.calls += [Asked(*pair, charged=False) for pair in zip(sent, replies, strict=True)]
            landed(replies)

        return super().peeks(space, sent, note, failed)

    def settlements(self, space: Keyspace, settlements: Any, landed: Any, failed: Any) -> Any:
        sent = [
            (permit, outcome, tuple(part._replace(luck=self.luck) for part in parts))
            for permit, outcome, parts in settlements
        ]

        def note(answers: Sequence[tuple[str, ...]]) -> None:
            number = len(self.calls)
            self.calls += [
                Settled(permit, outcome, parts, self.worker, statuses, number)
                for (permit, outcome, parts), statuses in zip(sent, answers, strict=True)
            ]
            landed(answers)

        return super().settlements(space, sent, note, failed)

    def renewals(self, space: Keyspace, renewals: Any, landed: Any, failed: Any) -> Any:
        def note(answers: Sequence[tuple[int, ...]]) -> None:
            self.calls += [
                Renewed(permit, tuple(parts), ends)
                for (permit, parts), ends in zip(renewals, answers, strict=True)
            ]
            landed(answers)

        return super().renewals(space, renewals, note, failed)


class RecordingStore(RedisStore):
    """The real store; what it sends is noted by its carrier."""

    carries = RecordingCarrier

    def __init__(
        self,
        url: str,
        keyspace: Keyspace,
        *,
        clock: str,
        scripts: Scripts | None = None,
    ) -> None:
        # Composing the texts is most of what it takes to make a store.
        original, redis_store.load_scripts = redis_store.load_scripts, cached_scripts
        try:
            super().__init__(url, keyspace, clock=clock, deadline=DEADLINE)
        finally:
            redis_store.load_scripts = original
        if scripts is not None:
            self._scripts = self._carrier.scripts = scripts

    @property
    def carrier(self) -> RecordingCarrier:
        """What notes the calls."""
        return cast("RecordingCarrier", self._carrier)

    @property
    def calls(self) -> list[Call]:
        """The calls that were noted."""
        return self.carrier.calls

    @calls.setter
    def calls(self, calls: list[Call]) -> None:
        self.carrier.calls = calls

    @property
    def luck(self) -> int:
        """What stands for chance."""
        return self.carrier.luck

    @luck.setter
    def luck(self, luck: int) -> None:
        self.carrier.luck = luck

    def report_as(self, worker: str) -> None:
        """Be another worker to breakers from now on."""
        self._worker = self._carrier.worker = worker

    async def force(
        self, key: str, aux: str, state: CircuitState, spec: str, indexed: str = ""
    ) -> str:
        previous = await super().force(key, aux, state, spec, indexed)
        self.calls.append(Forced(key, spec, state.value, previous))
        return previous

    async def reset(self, keys: Sequence[tuple[str, str]], indexed: str = "") -> int:
        count = await super().reset(keys, indexed)
        self.calls.append(Reset(tuple(key for key, _ in keys), count))
        return count


#: What shows every byte of a value. In which order a server has the fields of a hash may change as
#: it is read; and how fakeredis writes down a sorted set, with how it came about.
_LOOKS: dict[bytes, tuple[str, ...]] = {
    b"hash": ("HGETALL",),
    b"zset": ("ZRANGE", "0", "-1", "WITHSCORES"),
}


def _bytes_of(stored: Any) -> bytes:
    if isinstance(stored, bytes):
        return stored
    if isinstance(stored, dict):
        return b"\n".join(sorted(map(b"=".join, stored.items())))
    return repr(stored).encode()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Rig:
    """A bus, its store, and the hands on both; from synchronous code."""

    def __init__(
        self,
        url: str,
        *,
        scripts: Scripts | None = None,
        namespace: str = NAMESPACE,
    ) -> None:
        self.now = START
        self.keyspace = Keyspace(namespace)
        self.store = RecordingStore(
            url, self.keyspace, clock="include/manual_clock", scripts=scripts
        )
        self.bus = EventBus(self.store, self.keyspace, deadline=DEADLINE, cache_denials=False)
        self._runner = asyncio.Runner()
        # The store alone: what a bus does in the background has no place here.
        self._runner.run(self.store.open())
        self.control = self._control(url)
        self.control.flushall()
        self._ear = self.control.pubsub(ignore_subscribe_messages=True)
        self._ear.subscribe(self.keyspace.control, MARKS)
        self._marks = 0
        self.immortal = set[str]()
        self.ends: dict[str, int] = {}
        self._frozen: dict[str, int] = {}
        self._held_at = _wall_ms()
        self._set_clock()
        self.published()

    def _control(self, url: str) -> redis.Redis:
        if url != "memory://":
            return redis.Redis.from_url(url)
        client: Any = cast("Any", self.store._calls._connections).client
        return FakeRedis(server=client.connection_pool.connection_kwargs["server"])

    def close(self) -> None:
        self._ear.close()
        self.control.flushall()
        self.control.close()
        self._runner.run(self.store.close())
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- doing

    def run(self, work: Awaitable[T]) -> T:
        """Run something of the bus's to its end."""

        async def all_of_it() -> T:
            return await work

        return self._runner.run(all_of_it())

    def together(self, *work: Awaitable[T]) -> list[T]:
        """Run what is to travel in one script call."""

        async def all_of_it() -> list[T]:
            return await asyncio.gather(*work)

        return self._runner.run(all_of_it())

    def calls(self) -> list[Call]:
        """Get the calls since the last time."""
        calls, self.store.calls = self.store.calls, []
        self.hold_time()
        return calls

    # ---- time

    def _set_clock(self) -> None:
        self.control.set(CLOCK, self.now, px=DAY_MS)

    def step_back(self, us: int) -> None:
        """Be a server whose clock is behind the last one's."""
        # A state that has ended is not there again, but would count again until its time has passed
        # once more: for no longer than the clock is behind, which the model does not know of.
        for policy in self.indexed():
            self.control.zremrangebyscore(self.keyspace.subjects(policy), "-inf", self.now)
        self.now -= us
        self._set_clock()

    def advance(self, us: int) -> list[tuple[int, str]]:
        """Let time pass, for keys too; get those that ended, and when each did."""
        self.now += us
        self._set_clock()
        ended = sorted((end, key) for key, end in self.ends.items() if end <= self.now)
        self._pipe([("DEL", key) for _, key in ended])
        for _, key in ended:
            del self.ends[key]
        return ended

    def lose_everything(self) -> None:
        """Be a server that has come back empty."""
        self._pipe([("DEL", key) for key in self._keys()])
        self.ends.clear()

    def greet(self) -> None:
        """Find out which life of the state this is."""
        self.run(self.store.epoch(self.keyspace.tag))
        self.hold_time()

    def hold_time(self) -> None:
        """Take over when keys end: by the time that the test moves, not by the server's.

        A key that a script wrote carries another end than the one that it was given here. Its life
        is counted from the last time: where the machine is slow it is longer, never shorter.
        """
        keys = self._keys()
        found = self._pipe([("PEXPIRETIME", key) for key in keys])
        ends, commands = {}, list[tuple[Any, ...]]()
        for key, at in zip(keys, found, strict=True):
            name = key.decode()
            if at == self._frozen.get(name):
                ends[name] = self.ends[name]
                continue
            if at < 0:
                self.immortal.add(name)
            self._marks += 1
            self._frozen[name] = FAR_MS + self._marks
            ends[name] = self.now + (at - self._held_at) * 1000
            commands.append(("PEXPIREAT", key, self._frozen[name]))
        self._pipe(commands)
        self._heed_indexes(ends)
        self.ends = ends
        self._held_at = _wall_ms()

    def indexed(self) -> dict[str, dict[str, int]]:
        """Get what indexes of subjects say: for each policy, when each subject's state ends."""
        before = f"{self.keyspace.prefix}subjects:"
        return {
            key.decode().removeprefix(before): {
                member.decode(): int(score)
                for member, score in cast(
                    "list[tuple[bytes, float]]", self.control.zrange(key, 0, -1, withscores=True)
                )
            }
            for key in self._keys()
            if key.decode().startswith(before)
        }

    def _heed_indexes(self, ends: dict[str, int]) -> None:
        """Have states end when their index says, which knows nothing of how slow a machine is."""
        states = {self.policy_of(key): key for key in ends}
        for policy, subjects in self.indexed().items():
            for subject, end in subjects.items():
                key = states.get((policy, subject))
                if key is not None:
                    late = ends[key] - end
                    assert abs(late) < SLOW_US, f"the index has {key} end {late} us too early"
                    ends[key] = end

    @staticmethod
    def policy_of(key: str) -> tuple[str, str]:
        """Get the policy and the subject of a state key; of others, what is no policy's."""
        family, _, rest = key.partition("}:")[2].partition(":")
        policy, _, subject = rest.partition(":")
        return (policy, subject) if "." not in family else ("", key)

    # ---- looking

    def _keys(self) -> list[bytes]:
        return sorted(
            key for key in cast("list[bytes]", self.control.keys("*")) if key != CLOCK.encode()
        )

    def _pipe(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if not commands:
            return []
        with self.control.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return pipe.execute()

    def snapshot(self) -> Snapshot:
        """Get every byte that is stored, and when each key is to end."""
        keys = self._keys()
        kinds = self._pipe([("TYPE", key) for key in keys])
        commands: list[tuple[Any, ...]] = []
        for key, kind in zip(keys, kinds, strict=True):
            command, *rest = _LOOKS.get(kind, ("DUMP",))
            commands += [(command, key, *rest), ("PEXPIRETIME", key)]
        found = self._pipe(commands)
        return {
            key.decode(): (_bytes_of(found[2 * place]), found[2 * place + 1])
            for place, key in enumerate(keys)
        }

    def stored(self, key: str) -> dict[str, str]:
        """Get the fields of one state."""
        fields = cast("dict[bytes, bytes]", self.control.hgetall(key))
        return {name.decode(): value.decode() for name, value in fields.items()}

    def written_at(self, key: str) -> int:
        """Get the moment at which a state is changed that is changed now."""
        return max(self.now, int(self.stored(key).get("at", self.now)))

    def live(self, key: str, now: int) -> int:
        """Get how many leases of one state have not ended."""
        family = key.removeprefix(self.keyspace.prefix).partition(":")[0]
        aux = {"quota": "holds", "circuit": "calls", "slots": "leases"}[family]
        leases = key.replace(f":{family}:", f":{family}.{aux}:", 1)
        return cast("int", self.control.zcount(leases, f"({now}", "+inf"))

    def changed_circuits(self) -> dict[str, int]:
        """Get when circuits last changed, as the index says that is kept for late listeners."""
        return dict(self.run(self.store.changed_circuits()))

    def published(self) -> list[dict[str, str]]:
        """Get what scripts have published since the last time, in order."""
        self._marks += 1
        mark = str(self._marks).encode()
        self.control.publish(MARKS, mark)
        events: list[dict[str, str]] = []
        while True:
            message = self._ear.get_message(timeout=DEADLINE)
            if message is None or message["type"] != "message":
                continue
            if message["channel"] == MARKS.encode():
                if message["data"] == mark:
                    return events
            else:
                events.append(json.loads(message["data"]))
