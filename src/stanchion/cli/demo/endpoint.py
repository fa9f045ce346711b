"""A small local model endpoint: latency and token usage as of a real one, and a bad quarter."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from types import TracebackType

CHAT = "/v1/chat/completions"
SEARCH = "/v1/tools/search"
_FIRST_TOKEN = 0.06  # seconds until a model begins to answer
_PER_TOKEN = 0.0008
_FAILING = 0.04
_SEARCHING = (0.03, 0.12)


class ChatRequest(BaseModel):
    """What a caller sends; `generate` is how long the answer is to be, at most `max_tokens`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    prompt_tokens: int
    max_tokens: int
    seed: str
    generate: int | None = None


class Usage(BaseModel):
    """The tokens that the provider counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatReply(BaseModel):
    """What the provider answers; on a failure `error` says why and nothing is billed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    usage: Usage
    error: str | None = None


def completion_tokens(request: ChatRequest) -> int:
    """Get how many tokens the answer has; the same for the same request."""
    if request.generate is not None:
        return min(request.generate, request.max_tokens)
    share = random.Random(request.seed).betavariate(2.0, 3.0)
    return max(1, round(share * request.max_tokens))


def latency(tokens: int) -> float:
    """Get the seconds that an answer of so many tokens takes."""
    return _FIRST_TOKEN + _PER_TOKEN * tokens


class Endpoint:
    """The provider, on a port of its own on the loopback interface; use it as `async with`.

    `failing` are the models that answer with HTTP 500. What it counts is what it saw itself:
    `most` requests at once for each model, `billed` tokens, `answered` and `failed` requests.
    """

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.running: Counter[str] = Counter()
        self.most: dict[str, int] = {}
        self.billed: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.url = ""
        # The load stops before the server does; nothing is under way that needs to be waited for.
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_post(CHAT, self._chat)
        app.router.add_get(SEARCH, self._search)
        return app

    async def _chat(self, http: web.Request) -> web.Response:
        try:
            request = ChatRequest.model_validate_json(await http.read())
        except ValidationError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        model = request.model
        self.running[model] += 1
        self.most[model] = max(self.most.get(model, 0), self.running[model])
        try:
            return await self._answer(request)
        finally:
            self.running[model] -= 1

    async def _answer(self, request: ChatRequest) -> web.Response:
        model = request.model
        if model in self.failing:
            await asyncio.sleep(_FAILING)
            self.failed[model] += 1
            reply = ChatReply(model=model, usage=Usage(), error="the provider is having a bad day")
            return _json(reply, status=500)
        generated = completion_tokens(request)
        await asyncio.sleep(latency(generated))
        total = request.prompt_tokens + generated
        self.answered[model] += 1
        self.billed[model] += total
        usage = Usage(
            prompt_tokens=request.prompt_tokens, completion_tokens=generated, total_tokens=total
        )
        return _json(ChatReply(model=model, usage=usage))

    async def _search(self, http: web.Request) -> web.Response:
        chance = random.Random(http.query.get("q", ""))
        await asyncio.sleep(chance.uniform(*_SEARCHING))
        return web.json_response({"results": chance.randrange(1, 20)})


def _json(reply: ChatReply, status: int = 200) -> web.Response:
    return web.Response(
        text=reply.model_dump_json(), status=status, content_type="application/json"
    )
