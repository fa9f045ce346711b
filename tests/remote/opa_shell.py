"""OPA's REST API as far as a policy uses it, around OPA's own engine."""

from __future__ import annotations

import uuid
from typing import Any

from aiohttp import web
from opa_bindings import OpaEngine, OpaError, OpaUndefinedError


class OpaShell:
    """Policies are put, and documents are asked for; what is decided is logged, as OPA does it."""

    def __init__(self, token: str | None = None) -> None:
        self.url = ""
        self.log: list[dict[str, Any]] = []
        self.logs_decisions = True
        self._token = token
        self._modules: dict[str, str] = {}
        self._data: dict[str, Any] = {}
        self._engine = OpaEngine()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_put("/v1/policies/{id:.+}", self._put_policy)
        app.router.add_put("/v1/data/{path:.+}", self._put_data)
        app.router.add_post("/v1/data/{path:.+}", self._ask)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._engine.close()

    def load(self, rego: str, **data: Any) -> None:
        """Have one module and some data, and nothing else."""
        self._modules, self._data = {"test.rego": rego}, data
        self._build()

    def _build(self) -> None:
        engine = OpaEngine()
        for name, text in self._modules.items():
            engine.add_policy(name, text)
        if self._data:
            engine.add_data(self._data)
        engine.eval_query("true")
        self._engine.close()
        self._engine = engine

    def _refused(self, request: web.Request) -> web.Response | None:
        if self._token is None or request.headers.get("Authorization") == f"Bearer {self._token}":
            return None
        message = {"code": "unauthorized", "message": "request rejected by administrative policy"}
        return web.json_response(message, status=401)

    async def _put_policy(self, request: web.Request) -> web.Response:
        name, before = request.match_info["id"], dict(self._modules)
        self._modules[name] = await request.text()
        try:
            self._build()
        except OpaError as error:
            self._modules = before
            body = {"code": "invalid_parameter", "message": error.message}
            return web.json_response(body, status=400)
        return web.json_response({})

    async def _put_data(self, request: web.Request) -> web.Response:
        self._data[request.match_info["path"]] = await request.json()
        self._build()
        return web.Response(status=204)

    async def _ask(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        path, body = request.match_info["path"], await request.json()
        answer: dict[str, Any] = {}
        if self.logs_decisions:
            answer["decision_id"] = str(uuid.uuid4())
            self.log.append({"decision_id": answer["decision_id"], "path": path, **body})
        try:
            answer["result"] = self._engine.eval_document(path.replace("/", "."), body["input"])
        except OpaUndefinedError:
            pass
        except OpaError as error:
            return web.json_response(
                {"code": "internal_error", "message": error.message}, status=500
            )
        return web.json_response(answer)
