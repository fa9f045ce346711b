"""`HttpPolicy`: what it asks and understands in either dialect, and how it behaves on the wire."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from stanchion import ConfigError, Event, Reason
from tests.remote import faulty as deeds
from tests.remote.asking import CALL, authzen_policy, http_policy, opa_policy
from tests.remote.faulty import FaultyServer
from tests.waiting import eventually

# ---- what is asked


class Rich(Event, type="remote:rich"):
    """Fields of every kind."""

    count: int = 3
    share: float = 0.5
    urgent: bool = True
    at: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    tags: tuple[str, ...] = ("a", "b")


async def test_a_template_is_filled_with_what_the_event_holds(in_memory, faulty):
    request = {
        "who": "{tenant}",
        "numbers": ["{count}", "{share}", 7, None, True],
        "text": "{count} at {at} for {tenant}: {urgent} {{as is}}",
        "tags": "{tags}",
        "plan": "{metadata.plan}",
        "none": "{metadata.other}",
        "type": "{event_type}",
        "at": "{at}",
    }
    policy = http_policy(faulty.url + "/ask?key=1", on=Rich, request=request)
    bus = await in_memory(policy)
    assert await bus.check(Rich(id="id-1", metadata={"plan": {"name": "pro"}}))
    (asked,) = faulty.requests
    assert asked.path == "/ask?key=1"
    assert asked.document == {
        "who": None,
        "numbers": [3, 0.5, 7, None, True],
        "text": "3 at 2026-01-02T03:04:05Z for : true {as is}",
        "tags": ["a", "b"],
        "plan": {"name": "pro"},
        "none": None,
        "type": "remote:rich",
        "at": "2026-01-02T03:04:05Z",
    }
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["x-request-id"] == "id-1"


async def test_without_a_template_the_whole_event_is_asked_about(in_memory, faulty):
    bus = await in_memory(http_policy(faulty.url))
    await bus.check(CALL)
    assert Event.from_cloudevent(faulty.requests[0].document) == CALL


async def test_authzen_asks_who_does_what_with_what(in_memory, faulty):
    faulty.deed = deeds.answer({"decision": True})
    policy = authzen_policy(faulty.url + "/pdp/", context={"tokens": "{tokens}"})
    bus = await in_memory(policy)
    assert await bus.check(CALL)
    (asked,) = faulty.requests
    assert asked.path == "/pdp/access/v1/evaluation"
    assert asked.document == {
        "subject": {"type": "tenant", "id": "acme", "properties": {"cerbos.roles": ["tenant"]}},
        "action": {"name": "remote:call"},
        "resource": {"type": "model", "id": "m1", "properties": {"tokens": 10}},
        "context": {"tokens": 10},
    }


# ---- what is understood

ZEN = {
    "yes": ({"decision": True}, None),
    "no": ({"decision": False}, "denied"),
    "reason": ({"decision": False, "context": {"reason": " too\n much\x07 "}}, "too much?"),
    "user": ({"decision": False, "context": {"reason_user": {"en": "no"}}}, "no"),
    "admin": ({"decision": False, "context": {"reason_admin": {"en": "no"}}}, "no"),
    "strange": ({"decision": False, "context": {"reason": 7}}, "denied"),
    "missing": ({"context": {}}, Reason.POLICY_FAILED),
    "text": ({"decision": "true"}, Reason.POLICY_FAILED),
    "list": ([True], Reason.POLICY_FAILED),
}


@pytest.mark.parametrize(("answer", "reason"), ZEN.values(), ids=list(ZEN))
async def test_authzen_answers_true_or_false(in_memory, faulty, answer, reason):
    faulty.deed = deeds.answer(answer)
    bus = await in_memory(authzen_policy(faulty.url))
    decision = await bus.check(CALL)
    assert (decision.allowed, decision.reason) == (reason is None, reason)


async def test_the_decision_is_where_it_was_declared_to_be(in_memory, faulty):
    policy = http_policy(
        faulty.url,
        allow="result.effects.0.effect",
        allow_values=("ALLOW", "LOG"),
        reason="result.why",
        retry_after="result.seconds",
        decision_id="meta.id",
    )
    bus = await in_memory(policy)

    def said(effect: object, **more: object) -> dict[str, Any]:
        return {"result": {"effects": [{"effect": effect}], **more}, "meta": {"id": "d-1"}}

    faulty.deed = deeds.answer(said("LOG"))
    decision = await bus.check(CALL)
    assert decision.allowed
    assert decision.verdicts[0].decision_id == "d-1"
    faulty.deed = deeds.answer(said("DENY", why="so", seconds=2))
    decision = await bus.check(CALL)
    assert (decision.reason, decision.retry_after) == ("so", 2.0)
    assert decision.verdicts[0].decision_id == "d-1"
    for effect in (None, ["ALLOW"], True, ""):
        faulty.deed = deeds.answer(said(effect))
        assert (await bus.check(CALL)).reason == "denied"
    faulty.deed = deeds.answer({"result": {"effects": []}})
    assert (await bus.check(CALL)).reason == Reason.POLICY_FAILED


async def test_a_number_is_no_true(in_memory, faulty):
    bus = await in_memory(http_policy(faulty.url, allow_values=(1,)))
    faulty.deed = deeds.answer({"allow": 1})
    assert await bus.check(CALL)
    faulty.deed = deeds.answer({"allow": True})
    assert not await bus.check(CALL)


async def test_a_status_can_be_a_denial_and_no_other_is_an_answer(in_memory, faulty):
    policy = http_policy(faulty.url, deny_statuses=(403, 429), reason="why")
    bus = await in_memory(policy)
    faulty.deed = deeds.answer({"why": "blocked"}, status=403)
    assert (await bus.check(CALL)).reason == "blocked"
    faulty.deed = deeds.answer(b"<html>", status=429, Retry_After="3")
    decision = await bus.check(CALL)
    assert (decision.reason, decision.retry_after) == ("denied", 3.0)
    for status in (201, 400, 401, 404, 500):
        faulty.deed = deeds.answer({"allow": True}, status=status)
        other = await in_memory(http_policy(faulty.url, deny_statuses=(403,)))
        (veto,) = (await other.check(CALL)).vetoes
        assert (veto.reason, veto.detail) == (Reason.POLICY_FAILED, f"answered {status}")


async def test_an_echoed_request_id_links_to_the_service_s_log(in_memory, faulty):
    faulty.deed = deeds.answer({"decision": False}, X_Request_ID="r-1")
    bus = await in_memory(authzen_policy(faulty.url))
    assert (await bus.check(CALL)).vetoes[0].decision_id == "r-1"


async def test_an_overloaded_service_says_when_to_come_back(in_memory, faulty):
    faulty.deed = deeds.answer({}, status=503, Retry_After="2")
    bus = await in_memory(http_policy(faulty.url))
    assert (await bus.check(CALL)).retry_after == 2.0


async def test_a_long_reason_is_cut(in_memory, faulty):
    faulty.deed = deeds.answer({"allow": False, "why": "x" * 5000})
    bus = await in_memory(http_policy(faulty.url, reason="why"))
    assert len(str((await bus.check(CALL)).reason)) == 503


# ---- on the wire


async def test_connections_are_kept_and_no_more_than_declared(in_memory, faulty):
    bus = await in_memory(http_policy(faulty.url, connections=2))
    for _ in range(5):
        assert await bus.check(CALL)
    assert faulty.connections == 1
    checks = await asyncio.gather(*(bus.check(CALL) for _ in range(20)))
    assert all(checks)
    assert faulty.connections <= 3
    assert len(faulty.requests) == 25


async def test_a_connection_that_was_closed_meanwhile_is_opened_anew(in_memory, faulty):
    bus = await in_memory(http_policy(faulty.url))
    assert await bus.check(CALL)
    await faulty.stop()
    assert not await bus.check(CALL)
    await faulty.start()
    assert await bus.check(CALL)


async def test_cookies_are_not_kept(in_memory, faulty):
    faulty.deed = deeds.answer({"allow": True}, Set_Cookie="session=1")
    bus = await in_memory(http_policy(faulty.url.replace("127.0.0.1", "localhost"), timeout=2))
    await bus.check(CALL)
    await bus.check(CALL)
    assert "cookie" not in faulty.requests[1].headers


async def test_a_proxy_in_the_environment_is_not_asked(in_memory, faulty, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    bus = await in_memory(http_policy(faulty.url))
    assert await bus.check(CALL)


@pytest.fixture
async def elsewhere():
    server = FaultyServer()
    await server.start()
    yield server
    await server.stop()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_leads_to_another_place(in_memory, faulty, elsewhere, status):
    bus = await in_memory(http_policy(faulty.url, bearer="t0ken"))
    faulty.deed = deeds.answer({}, status=status, Location=elsewhere.url + "/x?t0ken")
    decision = await bus.check(CALL)
    assert decision.reason == Reason.POLICY_FAILED
    assert elsewhere.requests == []
    assert "t0ken" not in str(decision.vetoes[0].detail)


async def test_a_redirect_within_the_service_is_followed_a_few_times(in_memory, faulty):
    async def moved(writer):
        again = faulty.requests[-1].path == "/old"
        deed = deeds.answer({}, status=308, Location="/new") if again else here
        await deed(writer)

    here = deeds.answer({"allow": True})
    faulty.deed = moved
    bus = await in_memory(http_policy(faulty.url + "/old"))
    assert await bus.check(CALL)
    assert [request.path for request in faulty.requests] == ["/old", "/new"]
    assert faulty.requests[1].document == faulty.requests[0].document
    for status in (301, 302, 303):
        faulty.deed = deeds.answer({}, status=status, Location="/new")
        (veto,) = (await bus.check(CALL)).vetoes
        assert veto.detail == f"answered {status}, which is no answer to a question"
        faulty.deed = here
        assert await bus.check(CALL)
    for location in ("/old", "", "http://[", "https://127.0.0.1/"):
        faulty.deed = deeds.answer({}, status=307, Location=location)
        assert (await bus.check(CALL)).reason == Reason.POLICY_FAILED


async def test_a_bus_that_closes_cuts_nobody_off(in_memory, faulty):
    policy = http_policy(faulty.url, timeout=5)
    one, two = await in_memory(policy), await in_memory(policy)
    gate, here = asyncio.Event(), faulty.deed

    async def wait(writer):
        await gate.wait()
        await here(writer)

    faulty.deed = wait
    check = asyncio.create_task(two.check(CALL))
    await eventually(lambda: faulty.requests, what="it to be asked")
    closing = asyncio.create_task(one.close())
    await asyncio.sleep(0.02)
    gate.set()
    assert await check
    await closing
    assert await two.check(CALL)


# ---- declarations

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no-url": (
        {"url": "127.0.0.1:80"},
        r"url: not shown here; expected \"https://host:port/path\"",
    ),
    "space": ({"url": "http://a b"}, "url: not shown"),
    "port": ({"url": "http://a:99999"}, "url: not shown"),
    "fragment": ({"url": "http://a/#b"}, "url: not shown"),
    "header": ({"headers": {"X Key": "1"}}, "headers='X Key': no header can be so"),
    "no-allow": ({"allow": None}, "allow=None: needed with the dialect 'json'"),
    "path": ({"allow": "a..b"}, r"allow='a\.\.b'.*expected a path"),
    "subject": ({"subject": {}}, "subject={}: not with the dialect 'json'"),
    "dialect": ({"dialect": "xacml"}, "dialect='xacml'"),
    "brace": ({"request": {"a": "{"}}, r"request\.a='{'.*names no field; a brace is written {{"),
    "name": ({"request": {"a": ["{tokns}"]}}, r"request\.a\[0\]='tokns'.*has no field 'tokns'"),
    "object": ({"request": {"a": object()}}, r"request\.a=.*expected JSON"),
    "tls": ({"ca": "x.pem"}, "ca='x.pem': needs https"),
    "key": ({"url": "https://a", "key": "k"}, "key='k': needs a cert"),
    "bearers": ({"bearer": "a", "bearer_env": "PATH"}, "bearer_env='PATH': and bearer"),
    "env": ({"bearer_env": "NOT_SET_ANYWHERE"}, "bearer_env='NOT_SET_ANYWHERE': is not set"),
    "status": ({"deny_statuses": (200,)}, "deny_statuses"),
    "answer": ({"max_answer": 1}, "max_answer=1"),
    "connections": ({"connections": 0}, "connections=0"),
}


@pytest.mark.parametrize(("fields", "told"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_told_where_it_is_declared(fields, told):
    with pytest.raises(ConfigError, match=told):
        http_policy(**{"url": "http://127.0.0.1:1", **fields})


def test_a_path_cannot_follow_a_query():
    for declare in (authzen_policy, opa_policy):
        with pytest.raises(ConfigError, match="a path cannot follow its query"):
            declare("http://127.0.0.1:1/?key=1")


def test_authzen_needs_a_subject_and_a_resource():
    for field in ("subject", "resource"):
        with pytest.raises(ConfigError, match=f"{field}=None: needed with the dialect 'authzen'"):
            authzen_policy("http://127.0.0.1:1", **{field: None})
    with pytest.raises(ConfigError, match="allow='x': not with the dialect 'authzen'"):
        authzen_policy("http://127.0.0.1:1", allow="x")
