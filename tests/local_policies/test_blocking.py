"""The blocking face: a kill switch, and what its observers may still deliver at the end."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from stanchion import ConfigError, EventBus, sync
from stanchion.events import PolicyChanged
from stanchion.observers import Recorder
from stanchion.policies.kill_switch import KillSwitch
from tests.busses import Call, rate
from tests.waiting import eventually, eventually_sync


def test_a_kill_switch_stops_and_goes_on_without_await(valkey) -> None:
    recorder = Recorder(on=PolicyChanged)
    policies = [KillSwitch(name="stop"), rate()]
    with sync.EventBus.from_url(valkey.url, policies=policies, observers=[recorder]) as bus:
        switch = bus.switch("stop")
        assert bus.check(Call())
        assert switch.halt("busses:*", who="alice", why="costs", tenant="acme", last="1h")
        assert not switch.halt("busses:*", who="bob", why="costs", tenant="acme")
        decision = bus.check(Call(tenant="acme"))
        assert (decision.reason, decision.verdicts[0].detail) == (
            "halted",
            "busses:* tenant=acme, by bob: costs",
        )
        assert bus.check(Call())
        assert [halt.who for halt in switch.halted()] == ["bob"]
        eventually_sync(lambda: [vars(event)["change"] for event in recorder.events] == ["halted"])
        assert switch.resume("busses:*", tenant="acme") == 1
        assert switch.resume() == 0
        assert bus.check(Call(tenant="acme"))


def test_only_a_kill_switch_has_its_commands() -> None:
    with sync.EventBus.from_url("memory://", policies=[rate()]) as bus:
        for name in ("calls", "nothing"):
            with pytest.raises(ConfigError, match=f"policy name='{name}'"):
                bus.switch(name)


# ---- the end


class Slow:
    """Takes an event when it is let."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.took = 0

    def handle(self, event: Call) -> None:
        self.let.wait(5)
        self.took += 1


async def test_closing_waits_for_observers_as_long_as_it_is_told(caplog) -> None:
    slow = Slow()
    bus = EventBus.from_url("memory://", observers=[slow])
    await bus.open()
    bus.notify(Call())
    bus.notify(Call())
    await eventually(lambda: bus.observers.stats()["Slow"].in_hand)
    with pytest.raises(ConfigError, match="drain='soon'"):
        await bus.close(drain="soon")
    assert await bus.check(Call())  # nothing was closed
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        await bus.close(drain=0)
    assert time.monotonic() - began < 2
    assert "1 of its events are lost" in caplog.text or "2 of its events are lost" in caplog.text
    slow.let.set()


def test_the_blocking_face_does_so_too() -> None:
    slow = Slow()
    bus = sync.EventBus.from_url("memory://", observers=[slow])
    bus.open()
    bus.notify(Call())
    with pytest.raises(ConfigError, match="drain=-1"):
        bus.close(drain=-1)
    threading.Timer(0.2, slow.let.set).start()
    bus.close(drain="3s")
    assert slow.took == 1
