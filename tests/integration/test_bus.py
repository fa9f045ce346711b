"""The bus: what it asks, of whom, in how many calls, and what it says to what cannot work."""

from __future__ import annotations

import asyncio
import re
import time
import unicodedata
from typing import Any
from uuid import uuid4

import pytest

from stanchion import (
    CircuitOpen,
    ConcurrencyLimited,
    ConfigError,
    Event,
    EventBus,
    Outcome,
    QuotaExceeded,
    RateLimited,
    Reason,
    Signal,
    StanchionError,
    StoreUnavailable,
    Vetoed,
)
from stanchion.events import UnknownEvent
from tests.busses import (
    Call,
    Custom,
    Other,
    SpecialCall,
    breaker,
    calls_of_scripts,
    command,
    every_kind,
    in_use,
    quota,
    rate,
    slots,
    snapshot,
    warm,
)
from tests.servers import free_port
from tests.waiting import eventually

CALL = Call(tenant="acme")


class Priced(Event, type="bus_test:priced"):
    """An event whose cost is whatever somebody put there."""

    tenant: str
    amount: Any = 1


async def nothing_is_stored(bus: EventBus) -> bool:
    return await snapshot(bus) == {}


# ---- admitting and refusing


async def test_what_a_policy_allows_is_admitted_until_it_is_used_up(open_bus):
    bus = await open_bus(rate(limit=3))
    decisions = [await bus.check(CALL) for _ in range(4)]
    assert [bool(decision) for decision in decisions] == [True, True, True, False]
    assert [decision.verdicts[0].remaining for decision in decisions] == [2, 1, 0, 0]
    last = decisions[-1]
    assert (last.policy, last.reason, last.permit) == ("calls", Reason.LIMIT_REACHED, None)
    assert last.retry_after == pytest.approx(20, abs=1)
    assert last.signal is Signal.FAIL


async def test_a_verdict_has_the_numbers_that_a_caller_may_show(open_bus):
    bus = await open_bus(rate(limit=60, burst=3), quota(limit=100), slots(limit=4), breaker())
    decision = await bus.check(Call(tokens=30))
    by_name = {verdict.policy: verdict for verdict in decision.verdicts}
    assert list(by_name) == ["calls", "tokens", "slots", "provider"]
    assert {name: (v.limit, v.remaining) for name, v in by_name.items()} == {
        "calls": (60, 2),
        "tokens": (100, 70),
        "slots": (4, 3),
        "provider": (None, None),
    }
    assert by_name["calls"].reset_after == pytest.approx(1.0, abs=0.01)
    assert all(verdict.retry_after == 0.0 for verdict in decision.verdicts)


async def test_a_decision_carries_the_time_of_the_server(open_bus):
    bus = await open_bus(rate())
    before = time.time()
    decision = await bus.check(CALL)
    assert decision.permit is not None
    assert decision.decided_at == decision.permit.admitted_at
    assert decision.decided_at.timestamp() == pytest.approx(before, abs=2)


@pytest.mark.parametrize(
    ("policy", "event", "error", "reason"),
    [
        (rate(limit=1), CALL, RateLimited, "limit_reached"),
        (quota(limit=1), CALL, QuotaExceeded, "quota_exhausted"),
        (slots(limit=1), CALL, ConcurrencyLimited, "no_free_slot"),
    ],
    ids=["rate", "quota", "slots"],
)
async def test_each_kind_of_limit_vetoes_in_its_own_words(open_bus, policy, event, error, reason):
    bus = await open_bus(policy)
    assert await bus.check(event)
    decision = await bus.check(event)
    assert (decision.allowed, decision.reason) == (False, reason)
    assert decision.retry_after is not None
    with pytest.raises(error) as caught:
        await bus.admit(event)
    assert caught.value.decision.policy == policy.name
    assert isinstance(caught.value, Vetoed)


async def test_an_open_circuit_vetoes_in_its_own_words(open_bus):
    bus = await open_bus(breaker(consecutive_failures=1))
    permit = await bus.admit(CALL)
    await bus.settle(permit, Outcome.FAILURE)
    decision = await bus.check(CALL)
    assert decision.reason == Reason.CIRCUIT_OPEN
    assert decision.retry_after == pytest.approx(30, abs=1)
    with pytest.raises(CircuitOpen):
        await bus.admit(CALL)


async def test_what_no_policy_is_about_is_admitted_without_asking(open_bus):
    bus = await open_bus(rate())
    decision = await bus.check(Other())
    assert decision
    assert decision.verdicts == ()
    assert decision.decided_at is None
    assert decision.permit is not None
    assert await bus.settle(decision.permit)
    assert await nothing_is_stored(bus)


async def test_subjects_do_not_share(open_bus):
    bus = await open_bus(rate(limit=1, by=("tenant", "model")))
    assert await bus.check(Call(tenant="a", model="x"))
    assert await bus.check(Call(tenant="a", model="y"))
    assert await bus.check(Call(tenant="b", model="x"))
    assert not await bus.check(Call(tenant="a", model="x"))


async def test_fields_inside_metadata_make_subjects(open_bus):
    bus = await open_bus(rate(limit=1, by="metadata.user.id"))
    assert await bus.check(Call(metadata={"user": {"id": "u1"}}))
    assert await bus.check(Call(metadata={"user": {"id": 2}}))
    assert await bus.check(Call(metadata={}))
    assert not await bus.check(Call(metadata={"user": {"id": "u1"}}))
    assert not await bus.check(Call(metadata={"user": {}}))
    with pytest.raises(ConfigError, match=r"by='metadata.user.id': the event holds \[1\]"):
        await bus.check(Call(metadata={"user": {"id": [1]}}))


async def test_namespaces_do_not_share(open_shared):
    one = await open_shared(rate(limit=1), namespace="one")
    two = await open_shared(rate(limit=1), namespace="two")
    assert await one.check(CALL)
    assert await two.check(CALL)
    assert not await one.check(CALL)


async def test_buses_of_one_namespace_share(open_shared):
    one, two = await open_shared(rate(limit=2)), await open_shared(rate(limit=2))
    assert await one.check(CALL)
    assert await two.check(CALL)
    assert not await one.check(CALL)
    assert not await two.check(CALL)


# ---- whom it asks


@pytest.mark.parametrize(
    ("on", "asked"),
    [
        (Call, {Call, SpecialCall}),
        (SpecialCall, {SpecialCall}),
        ("busses:call", {Call}),
        ("busses:*", {Call, SpecialCall}),
        ("busses*:*", {Call, SpecialCall, Other}),
        ((SpecialCall, "busses_other:thing"), {SpecialCall, Other}),
        ("busses_later:*", set()),
    ],
    ids=repr,
)
async def test_selectors_choose_the_events_of_a_policy(open_bus, on, asked):
    custom = Custom(on=on)
    bus = await open_bus(rate(on=on, by="tenant"), custom)
    for kind in (Call, SpecialCall, Other):
        decision = await bus.check(kind(tenant="a"))
        assert bool(decision.verdicts) is (kind in asked), kind
        assert len(decision.verdicts) in {0, 2}
    assert {type(event) for event in custom.asked} == asked


async def test_events_of_a_type_that_no_class_has_are_selected_by_text(open_bus):
    bus = await open_bus(rate(on="com.example.*", by="tenant", limit=1))
    document = {"specversion": "1.0", "id": "1", "source": "/x", "type": "com.example.made"}
    event = Event.from_cloudevent({**document, "data": {"tenant": "a"}})
    other = Event.from_cloudevent({**document, "id": "2", "data": {"tenant": "b"}})
    assert isinstance(event, UnknownEvent)
    assert [bool(await bus.check(one)) for one in (event, other, event)] == [True, True, False]
    foreign = Event.from_cloudevent({**document, "type": "org.example.made"})
    assert (await bus.check(foreign)).verdicts == ()


async def test_a_class_defined_after_the_glob_and_without_its_fields_is_vetoed_not_missed(open_bus):
    family = f"bus_late_{uuid4().hex}"
    bus = await open_bus(rate(on=f"{family}:*", by="region"))

    class Late(Event, type=f"{family}:one"):
        tenant: str = "a"

    decision = await bus.check(Late())
    assert not decision
    assert decision.reason == Reason.POLICY_FAILED
    assert decision.policy == "calls"


async def test_a_policy_registered_later_is_asked_from_then_on(open_bus):
    bus = await open_bus(rate("first"))
    assert len((await bus.check(CALL)).verdicts) == 1
    bus.register(slots("second"))
    assert [verdict.policy for verdict in (await bus.check(CALL)).verdicts] == ["first", "second"]
    with pytest.raises(ConfigError, match=r"policy name='second': another policy has it already"):
        bus.register(slots("second"))
    with pytest.raises(ConfigError, match=r"policy=3: expected a built-in policy"):
        bus.register(3)
    bus.unregister("first")
    assert [verdict.policy for verdict in (await bus.check(CALL)).verdicts] == ["second"]
    with pytest.raises(ConfigError, match=r"policy name='first': expected one of \['second'\]"):
        bus.unregister("first")


async def test_what_a_policy_held_is_settled_even_after_it_was_unregistered(open_bus):
    bus = await open_bus(slots())
    permit = await bus.admit(CALL)
    bus.unregister("slots")
    assert await bus.settle(permit)
    assert await in_use(bus) == 0


async def test_order_is_by_priority_then_registration(open_bus):
    asked: list[str] = []

    def custom(name, priority):
        async def note(event):
            asked.append(name)
            return True

        return Custom(name, priority=priority, answer=note)

    bus = await open_bus(custom("b", 100), custom("a", 100), custom("low", 5), custom("high", 900))
    bus.register(custom("later", 100))
    bus.register(custom("lowest", -1))
    await bus.check(CALL)
    assert asked == ["lowest", "low", "b", "a", "later", "high"]


@pytest.mark.parametrize("signal", [Signal.SKIP, Signal.RETRY, Signal.FALLBACK, Signal.FAIL])
async def test_the_first_veto_advises_what_to_do(open_bus, signal):
    bus = await open_bus(
        rate(limit=1, on_veto=signal), slots(limit=1, on_veto="fail"), Custom(on_veto=signal)
    )
    assert (await bus.check(CALL)).signal is Signal.PROCEED
    assert (await bus.check(CALL)).signal is signal
    bus.unregister("calls")
    bus.unregister("slots")
    custom = bus.policies[0]
    assert isinstance(custom, Custom)
    custom.answer = False
    assert (await bus.check(CALL)).signal is signal


# ---- modes


async def test_a_shadow_policy_tells_its_veto_and_enforces_nothing(open_bus):
    bus = await open_bus(rate(limit=1, mode="shadow"), slots(limit=5))
    assert await bus.check(CALL)
    decision = await bus.check(CALL)
    assert decision
    assert decision.signal is Signal.PROCEED
    shadow, enforced = decision.verdicts
    assert (shadow.allowed, shadow.enforced, shadow.reason) == (False, False, "limit_reached")
    assert (enforced.allowed, enforced.enforced) == (True, True)
    assert decision.vetoes == ()
    assert decision.permit is not None
    assert [hold.policy for hold in decision.permit.holds] == ["slots"]


async def test_a_shadow_policy_counts_what_it_would_admit(open_bus):
    bus = await open_bus(rate(limit=2, mode="shadow"))
    allowed = [(await bus.check(CALL)).verdicts[0].allowed for _ in range(3)]
    assert allowed == [True, True, False]


async def test_a_policy_that_is_off_is_not_asked(open_bus):
    bus = await open_bus(rate(limit=1, mode="off"))
    for _ in range(3):
        decision = await bus.check(CALL)
        assert decision
        assert decision.verdicts == ()
    assert await nothing_is_stored(bus)


# ---- looking without touching


async def test_peek_says_what_check_would_and_writes_nothing(open_bus):
    bus = await open_bus(*every_kind(), Custom())
    event = Call(tenant="acme", tokens=10)
    assert await bus.peek(event)
    assert await nothing_is_stored(bus)
    for _ in range(2):
        assert await bus.check(event)
    before = await snapshot(bus)
    peeked = await bus.peek(event)
    assert await snapshot(bus) == before
    assert peeked.permit is None
    checked = await bus.check(event)
    assert [(v.policy, v.allowed, v.reason, v.limit, v.remaining) for v in peeked.verdicts] == [
        (v.policy, v.allowed, v.reason, v.limit, v.remaining) for v in checked.verdicts
    ]
    assert not checked, "two slots are in use: the third call shows what a veto looks like"


@pytest.mark.parametrize("policy", every_kind(), ids=lambda policy: policy.name)
async def test_peek_writes_nothing_for_any_kind_full_or_not(open_bus, policy):
    bus = await open_bus(policy)
    event = Call(tokens=100)
    for _ in range(12):
        before = await snapshot(bus)
        peeked = await bus.peek(event)
        assert await snapshot(bus) == before
        checked = await bus.check(event)
        assert peeked.allowed is checked.allowed
        assert peeked.reason == checked.reason
    if policy.name != "breaker":
        assert not checked


# ---- how many calls it takes


async def test_a_chain_of_four_costs_one_script_call_and_settling_one_more(open_shared, server):
    bus = await open_shared(rate(limit=100), quota(), slots(limit=50), breaker())
    await warm(bus, server, CALL)
    with server.counting() as checking:
        decision = await bus.check(CALL)
    assert decision.permit is not None
    assert len(decision.permit.holds) == 4
    with server.counting() as settling:
        assert await bus.settle(decision.permit)
    with server.counting() as peeking:
        await bus.peek(CALL)
    for counted in (checking, settling, peeking):
        assert calls_of_scripts(counted) == counted["evalsha"] == 1


async def test_thirty_policies_cost_one_script_call(open_shared, server):
    kinds = (rate, quota, slots, breaker)
    policies = [kinds[i % 4](f"level-{i}", by="tenant" if i % 3 else ()) for i in range(30)]
    bus = await open_shared(*policies)
    await warm(bus, server, CALL)
    with server.counting() as counted:
        decision = await bus.check(CALL)
    assert [verdict.policy for verdict in decision.verdicts] == [p.name for p in policies]
    assert calls_of_scripts(counted) == 1
    assert decision.permit is not None
    with server.counting() as counted:
        assert await bus.settle(decision.permit, Outcome.FAILURE)
    assert calls_of_scripts(counted) == 1


async def test_concurrent_checks_travel_together(open_shared, server):
    bus = await open_shared(rate(limit=150), slots(limit=1000), breaker())
    await warm(bus, server, CALL)
    with server.counting() as counted:
        decisions = await asyncio.gather(*(bus.check(CALL) for _ in range(200)))
    assert sum(map(bool, decisions)) == 150
    calls = calls_of_scripts(counted)
    print(f"\n200 concurrent checks: {calls} script calls")
    assert calls <= 10
    permits = [decision.permit for decision in decisions if decision.permit]
    with server.counting() as counted:
        assert all(await asyncio.gather(*(bus.settle(permit) for permit in permits)))
    assert calls_of_scripts(counted) <= 10


async def test_a_server_that_forgot_the_scripts_is_given_them_again(open_shared, server):
    bus = await open_shared(rate(limit=2))
    assert await bus.check(CALL)
    server.execute("SCRIPT", "FLUSH")
    assert await bus.check(CALL)
    assert not await bus.check(CALL)


# ---- what it says to what cannot work


@pytest.mark.parametrize("amount", [-1, 1.5, "3", None, True, 2**53, [1], float("nan")], ids=repr)
async def test_a_cost_that_cannot_be_counted_is_refused_and_charges_nothing(open_bus, amount):
    bus = await open_bus(
        slots("before", on=Priced), rate(on=Priced, cost="amount"), slots("behind", on=Priced)
    )
    text = (
        rf"RateLimit 'calls': cost 'amount' is {re.escape(repr(amount))}; expected a whole number"
    )
    for ask in (bus.check, bus.peek, bus.admit):
        with pytest.raises(ConfigError, match=text):
            await ask(Priced(tenant="a", amount=amount))
    assert await nothing_is_stored(bus)


@pytest.mark.parametrize(
    ("policy", "limit"),
    [
        (rate(cost="tokens", limit=100, burst=5), 100),
        (rate(cost="tokens", limit=5, algorithm="sliding_log"), 5),
        (rate(cost="tokens", limit=5, algorithm="sliding_window"), 5),
        (rate(cost="tokens", limit=5, algorithm="fixed_window"), 5),
        (quota(limit=5), 5),
        (quota(limit=5, per="1h", rolling=True), 5),
        (slots(limit=5, cost="tokens"), 5),
    ],
    ids=["gcra", "log", "window", "fixed", "quota", "rolling", "slots"],
)
async def test_a_cost_that_can_never_pass_is_vetoed_for_good(open_bus, policy, limit):
    bus = await open_bus(policy, slots("behind"))
    decision = await bus.check(Call(tokens=6))
    assert not decision
    assert decision.reason == Reason.COST_ABOVE_LIMIT
    assert decision.retry_after is None
    assert decision.verdicts[0].limit == limit
    assert await nothing_is_stored(bus)
    assert await bus.check(Call(tokens=5))


async def test_a_cost_of_nothing_is_admitted_and_leaves_room(open_bus):
    bus = await open_bus(
        rate(limit=1, cost="tokens"), quota(limit=1), slots(limit=1, cost="tokens")
    )
    for _ in range(3):
        decision = await bus.check(Call(tokens=0))
        assert decision
        assert await bus.settle(decision.permit)
    assert await bus.check(Call(tokens=1))
    assert not await bus.check(Call(tokens=1))


TENANTS = {
    "brace": "a}{b:\n\0",
    "megabyte": "x" * 1_000_000,
    "none": None,
    "empty": "",
    "tilde": "~",
    "dash": "-",
    "glob": "*",
    "newline": "\r\n",
    "quote": "'\"\\",
    "emoji": "🦀" * 50,
}


@pytest.mark.parametrize("tenant", TENANTS.values(), ids=TENANTS)
async def test_any_tenant_has_a_limit_of_its_own_and_safe_keys(open_bus, tenant):
    bus = await open_bus(rate(limit=1, by="tenant"), quota(by="tenant"), slots(by="tenant"))
    others = [value for value in TENANTS.values() if value != tenant]
    permit = await bus.admit(Call(tenant=tenant))
    assert not await bus.check(Call(tenant=tenant))
    for other in others:
        assert await bus.peek(Call(tenant=other)), other
    keys = [key.decode() for key in await command(bus, "KEYS", "stanchion:{default}:*:*")]
    assert len(keys) == 5
    for key in keys:
        assert len(key) < 250
        assert re.fullmatch(r"stanchion:\{default\}:[a-z.]+:[a-z]+:[A-Za-z0-9._@+=%~-]+", key)
    assert await bus.settle(permit)
    assert await bus.reset("slots", tenant=tenant) == 1
    states = [state async for state in bus.inspect("tokens")]
    if tenant is not None and len(tenant) > 100:
        assert (states[0].by[0] or "").startswith(tenant[:40])
    elif tenant == "🦀" * 50:
        assert re.fullmatch("🦀{3,}~[0-9a-f]{32}", states[0].by[0] or "")
    else:
        assert [state.by for state in states] == [(tenant,)]


async def test_a_tenant_is_one_tenant_however_its_accents_are_written(open_bus):
    bus = await open_bus(rate(limit=1, by="tenant"))
    assert await bus.check(Call(tenant=unicodedata.normalize("NFC", "Zoë")))
    assert not await bus.check(Call(tenant=unicodedata.normalize("NFD", "Zoë")))


async def test_private_subjects_leave_no_trace(open_bus):
    policies = (rate(limit=1, by="tenant", private=True), quota(by="tenant", private=True))
    bus = await open_bus(*policies)
    assert await bus.check(Call(tenant="someone@example.org"))
    assert not await bus.check(Call(tenant="someone@example.org"))
    assert await bus.check(Call(tenant="somebody@example.org"))
    for key, (value, _) in (await snapshot(bus)).items():
        assert "example" not in key
        assert b"example" not in value
    assert await bus.reset("calls", tenant="someone@example.org") == 1
    assert await bus.check(Call(tenant="someone@example.org"))


@pytest.mark.parametrize("what", [None, 3, "busses:call", {"tenant": "a"}, Call], ids=repr)
async def test_what_is_no_event_is_refused(open_bus, what):
    bus = await open_bus(rate())
    with pytest.raises((ConfigError, TypeError, AttributeError)):
        await bus.check(what)
    assert await nothing_is_stored(bus)


# ---- opening and closing


async def test_a_bus_that_is_not_open_says_so():
    bus = EventBus.from_url("memory://", policies=[rate()])
    for ask in (bus.check(CALL), bus.peek(CALL), bus.admit(CALL), bus.reset("calls")):
        with pytest.raises(StanchionError, match="not open"):
            await ask


async def test_a_bus_that_was_closed_says_so_and_opens_again(valkey):
    bus = EventBus.from_url(valkey.url, policies=[rate()])
    async with bus:
        permit = await bus.admit(CALL)
    with pytest.raises(StanchionError, match="not open"):
        await bus.check(CALL)
    with pytest.raises(StanchionError, match="not open"):
        await bus.settle(permit)
    await bus.close()


async def test_an_error_inside_the_block_of_a_bus_comes_out_and_closes_it(valkey):
    async def fails() -> None:
        async with EventBus.from_url(valkey.url, policies=[rate()]) as bus:
            await bus.check(CALL)
            raise KeyError

    with pytest.raises(KeyError):
        await fails()
    await eventually(lambda: not valkey.connections())


async def test_a_bus_belongs_to_the_loop_that_opened_it(valkey):
    async with EventBus.from_url(valkey.url, policies=[rate()]) as bus:

        def elsewhere():
            with pytest.raises(ConfigError, match="opened on another event loop"):
                asyncio.run(bus.check(CALL))

        await asyncio.to_thread(elsewhere)


# ---- while the store does not answer


async def test_a_refused_connection_is_a_veto_at_once_and_not_dressed_up_as_a_limit():
    url = f"redis://127.0.0.1:{free_port()}/0"
    async with EventBus.from_url(url, policies=[rate(), slots()], deadline=0.5) as bus:
        began = time.monotonic()
        for _ in range(5):
            decision = await bus.check(CALL)
            assert not decision
            assert decision.permit is None
            assert [v.reason for v in decision.verdicts] == [Reason.STORE_UNAVAILABLE] * 2
            assert decision.retry_after is None
            assert decision.signal is Signal.FAIL
            assert decision.decided_at is None
        with pytest.raises(Vetoed) as caught:
            async with bus.guard(CALL):
                pytest.fail("entered without a permit")
        assert type(caught.value) is Vetoed
        assert caught.value.decision.reason == Reason.STORE_UNAVAILABLE
        assert (await bus.peek(CALL)).reason == Reason.STORE_UNAVAILABLE
        with pytest.raises(Vetoed):
            await bus.admit(CALL, wait=5)
        for ask in (bus.reset("calls"), anext(bus.inspect())):
            with pytest.raises(StoreUnavailable):
                await ask
        assert time.monotonic() - began < 1.0


async def test_settling_without_a_store_raises_and_a_guard_does_not(valkey, caplog):
    async with EventBus.from_url(valkey.url, policies=[slots()], deadline=0.5) as bus:
        permit = await bus.admit(CALL)
        async with bus.guard(CALL):
            valkey.kill()
        assert "was not settled; its leases will end it" in caplog.text
        with pytest.raises(StoreUnavailable):
            await bus.settle(permit)


@pytest.mark.parametrize("policy", [rate(), quota(), slots(), breaker()], ids=lambda p: p.name)
async def test_a_policy_may_admit_while_the_store_is_away(policy):
    url = f"redis://127.0.0.1:{free_port()}/0"
    lenient = policy.model_copy(update={"on_outage": "admit"})
    lenient = type(policy).model_validate({**dict(policy), "on_outage": "admit"})
    async with EventBus.from_url(url, policies=[lenient, Custom()]) as bus:
        decision = await bus.check(CALL)
        assert decision
        assert decision.verdicts[0].reason == Reason.STORE_UNAVAILABLE
        assert decision.permit is not None
        assert decision.permit.holds == ()
        assert await bus.settle(decision.permit)
        async with bus.guard(CALL):
            pass


async def test_one_strict_policy_among_lenient_ones_vetoes():
    url = f"redis://127.0.0.1:{free_port()}/0"
    policies = [rate(on_outage="admit"), slots(on_veto="retry"), quota(on_outage="admit")]
    async with EventBus.from_url(url, policies=policies) as bus:
        decision = await bus.check(CALL)
        assert [verdict.allowed for verdict in decision.verdicts] == [True, False, True]
        assert (decision.policy, decision.signal) == ("slots", Signal.RETRY)
