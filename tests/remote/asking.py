"""What the tests of policies that ask a service have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from stanchion import Event, Verdict
from stanchion.policies.remote import HttpPolicy, OpaPolicy, RemotePolicy


class Call(Event, type="remote:call"):
    """What services are asked about."""

    tenant: str | None = None
    model: str = "m1"
    tokens: int = 1


CALL = Call(tenant="acme", tokens=10)


class Service:
    """Something that can be asked, in this process; it answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Event] = []
        self.answer: Any = True
        self.ended: list[str] = []
        self.wait: Callable[[], Awaitable[object]] | None = None

    def hold(self) -> asyncio.Event:
        """Let nobody have an answer until the event is set."""
        gate = asyncio.Event()
        self.wait = gate.wait
        return gate

    async def __call__(self, event: Event) -> Verdict:
        self.asked.append(event)
        try:
            if self.wait is not None:
                await self.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("answered")
        if isinstance(self.answer, BaseException):
            raise self.answer
        if isinstance(self.answer, Verdict):
            return self.answer
        return Verdict("service", self.answer, "ok" if self.answer else "not today")


class Asked(RemotePolicy):
    """A policy that asks a `Service`."""

    service: Service

    async def ask(self, event: Event) -> Verdict:
        return await self.service(event)


def asked(service: Service, name: str = "remote", **fields: Any) -> Asked:
    return Asked(**{"name": name, "on": Call, "service": service, **fields})


def opa_policy(url: str, path: str = "test/allow", **fields: Any) -> OpaPolicy:
    return OpaPolicy(**{"name": "opa", "on": Call, "url": url, "path": path, **fields})


def http_policy(url: str, **fields: Any) -> HttpPolicy:
    """Make a policy that asks in plain JSON and finds the decision at `allow`."""
    given = {"name": "http", "on": Call, "url": url, "dialect": "json", "allow": "allow"}
    return HttpPolicy(**{**given, **fields})


def authzen_policy(url: str, **fields: Any) -> HttpPolicy:
    given: dict[str, Any] = {
        "name": "authz",
        "on": Call,
        "url": url,
        "subject": {
            "type": "tenant",
            "id": "{tenant}",
            "properties": {"cerbos.roles": ["tenant"]},
        },
        "resource": {"type": "model", "id": "{model}", "properties": {"tokens": "{tokens}"}},
    }
    return HttpPolicy(**{**given, **fields})
