"""A local HTTP(S) endpoint that answers as it is told to and keeps what it was sent."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pytest
import trustme
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from stanchion.events import Event, NodeCompleted
from stanchion.observers.delivery import Undelivered


@dataclass(frozen=True)
class Received:
    """One request, as it arrived."""

    path: str
    query: Mapping[str, str]
    headers: CIMultiDictProxy[str]
    body: bytes
    connection: object = None

    @cached_property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What to answer; `hangs` does so only when the endpoint closes, `endless` never ends."""

    status: int = 200
    body: str = "ok"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    hangs: bool = False
    endless: bool = False


OK = Answer()


class Endpoint:
    """Answers with `answers` in their order, and then with what `judge` says of a request."""

    def __init__(
        self,
        *answers: Answer,
        judge: Callable[[Received], Answer] = lambda _: OK,
        tls: trustme.CA | None = None,
    ) -> None:
        self.answers = deque(answers)
        self.judge = judge
        self.received: list[Received] = []
        self.origin = ""
        self._tls = tls
        self._closing = asyncio.Event()

    @property
    def url(self) -> str:
        return f"{self.origin}/hook/s3cr3t-path"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        context = None
        if self._tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.issue_cert("127.0.0.1").configure_cert(context)
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = self._runner.addresses[0][1]
        self.origin = f"{'https' if context else 'http'}://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        received = Received(
            request.path,
            dict(request.query),
            CIMultiDictProxy(CIMultiDict(request.headers)),
            await request.read(),
            request.transport,
        )
        self.received.append(received)
        answer = self.answers.popleft() if self.answers else self.judge(received)
        if answer.hangs:
            await self._closing.wait()
        if answer.endless:
            stream = web.StreamResponse(status=answer.status)
            await stream.prepare(request)
            while not self._closing.is_set():
                await stream.write(b"x" * 65536)
            return stream
        return web.Response(status=answer.status, text=answer.body, headers=answer.headers)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The documents of every batch that was answered, in the order of their arrival."""
        return [document for one in self.received for document in one.json]


def ca_file(ca: trustme.CA, directory: Path) -> Path:
    path = directory / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return path


@dataclass
class Told:
    """Everything that a user could come to see of a sink: the log at its finest, and errors."""

    caplog: pytest.LogCaptureFixture
    texts: list[str] = field(default_factory=list[str])

    @classmethod
    def watching(cls, caplog: pytest.LogCaptureFixture) -> Self:
        caplog.set_level(logging.DEBUG)
        for name in list(logging.Logger.manager.loggerDict):
            if not name.startswith("asyncio"):
                caplog.set_level(logging.DEBUG, logger=name)
        return cls(caplog)

    def error(self, error: BaseException) -> None:
        self.texts += [repr(error), str(error), "".join(traceback.format_exception(error))]

    def everything(self, *objects: object) -> str:
        return "\n".join([*map(repr, objects), *self.texts, self.caplog.text])


def nodes(number: int, **fields: Any) -> list[Event]:
    """Get events of nodes n0, n1, ... that have these fields."""
    return [NodeCompleted(node=f"n{one}", duration=1.0, **fields) for one in range(number)]


async def send(sink: Any, *events: Event) -> Undelivered | None:
    """Start a sink, send one batch, close it; get what was not delivered."""
    await sink.start()
    try:
        await sink.handle_batch(events)
    except Undelivered as error:
        return error
    finally:
        await sink.close()
    return None
