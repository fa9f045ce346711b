"""Nobody gets around a halt by spelling his name in another way, and no two halts are one."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import pytest

from stanchion import ConfigError
from stanchion.policies.kill_switch import KillSwitch
from tests.security.hostile import NASTY, Request, same

if TYPE_CHECKING:
    from tests.busses import Buses

WHO = {"who": "ops", "why": "abuse"}
TWO_STORES = pytest.mark.parametrize("store_url", ["fakeredis", "valkey9"], indirect=True)


@TWO_STORES
async def test_a_name_is_halted_however_it_is_spelt(open_bus: Buses):
    stop = KillSwitch(name="stop")
    bus = await open_bus(stop)
    await stop.halt("security:*", user="Zoë", **WHO)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        decision = await bus.check(Request(user=unicodedata.normalize(form, "Zoë")))
        assert decision.reason == "halted", form
    assert await bus.check(Request(user="Zoe"))
    assert await stop.resume("security:*", user=unicodedata.normalize("NFD", "Zoë")) == 1
    assert await bus.check(Request(user="Zoë"))


@TWO_STORES
async def test_whoever_can_use_a_limit_can_be_halted(open_bus: Buses):
    """But for what is no text that JSON carries, which is refused, and "", which says nobody."""
    stop = KillSwitch(name="stop")
    bus = await open_bus(stop)
    users = {same(user): user for user in NASTY if user is not None and user != ""}
    for text, user in users.items():
        if any("\ud800" <= letter <= "\udfff" for letter in text or ""):
            with pytest.raises(ConfigError, match="halt: by user"):
                await stop.halt("*", user=text, **WHO)
            continue
        await stop.halt("*", user=text, **WHO)
        decision = await bus.check(Request(user=user))
        assert decision.reason == "halted", ascii(user)
        assert (decision.verdicts[0].detail or "").isascii()
        assert await bus.check(Request(user=f"{text}!"))
        assert await stop.resume() == 1


async def test_two_halts_are_never_one(valkey, open_valkey: Buses):
    stop = KillSwitch(name="stop")
    bus = await open_valkey(stop)
    await stop.halt("*", user="a", other="b", **WHO)
    await stop.halt("*", user="a other=b", **WHO)
    assert len(await stop.halted()) == 2
    assert (await bus.check(Request(user="a", other="b"))).reason == "halted"
    assert (await bus.check(Request(user="a other=b"))).reason == "halted"
    await stop.resume("*", user="a other=b")
    assert (await bus.check(Request(user="a", other="b"))).reason == "halted"
    await stop.resume()


async def test_a_number_that_nobody_can_write_is_vetoed(open_valkey: Buses):
    stop = KillSwitch(name="stop")
    bus = await open_valkey(stop)
    await stop.halt("*", user="1", **WHO)
    assert (await bus.check(Request(user=10**5000))).reason == "policy_failed"
    with pytest.raises(ConfigError, match="halt: by user"):
        await stop.halt("*", user=10**5000, **WHO)
    await stop.resume()
