"""The addresses, and who may ask.

    POST /v1/chat/completions   a solution, at once or as a stream
    GET  /v1/models             the names that may be asked for
    GET  /health                whether the server takes requests; for everybody
    GET  /metrics               see gauges.py

Whatever happens, a request is answered in the protocol's form; one whose client goes away is given up, and its search.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from restmcts import __version__
from restmcts.account import Count
from restmcts.drive import Drive
from restmcts.engines import Engines
from restmcts.errors import EngineError
from restmcts.hosts import host_of, is_local
from restmcts.serve.desk import Desk
from restmcts.serve.gauges import GONE, KIND, Gauges
from restmcts.serve.refusal import Refusal
from restmcts.serve.reply import DONE, Reply, comment, event, grows_straight, steps_so_far
from restmcts.serve.request import OWN, Asked, Menu
from restmcts.types import Ask, Tree

T = TypeVar("T")

COMPLETIONS = "/v1/chat/completions"
HEALTH = "/health"
FAILING_AFTER = 3
"""searches in a row that the engine failed, after which the server calls itself failing"""
_BODY_SECONDS, _REPLY_SECONDS = 30.0, 60.0
"""how long a client may take to send its request, and to take in what it is sent"""

_BUG = "a bug in restmcts; see the server's log"

log = logging.getLogger("restmcts")


class Gone(Exception):
    """The client went away."""


class Service:
    """What answers requests: a menu, a desk, and engines behind them."""

    def __init__(self, menu: Menu, drive: Drive) -> None:
        limits, engines = menu.limits, drive.engines
        self.menu, self.engines = menu, engines
        self.desk = Desk(drive, places=menu.config.engine.concurrency, queue=limits.queue)
        self.gauges = Gauges(self.desk, engines)
        self._began = int(time.time())
        self._fingerprint = _fingerprint(engines)

    # ---------------------------------------------------------------- completions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request for a completion."""
        began, method, send = time.monotonic(), "", _impatient(send)
        status = GONE
        try:
            try:
                asked = self.menu.read(await self.body(Request(scope, receive)))
                method = asked.errand.settings.method
                reply = Reply(asked, f"chatcmpl-{secrets.token_hex(12)}", self._fingerprint)
                with self.desk.entry():
                    status = await (self.stream if asked.stream else self.whole)(reply, receive, send)
            except Refusal as refusal:
                await _refuse(refusal)(scope, receive, send)
                status = refusal.status
        except (Gone, ClientDisconnect):
            pass
        except Exception:
            log.exception("a request was not answered")
            status = 500
            await _refuse(Refusal(500, _BUG))(scope, receive, send)
        finally:
            self.gauges.served(method, status, time.monotonic() - began)

    async def body(self, request: Request) -> bytes:
        """The request's body. Raises Refusal for one that is too large, too slow, or not said to be JSON."""
        most = self.menu.limits.body_kb << 10
        too_large = Refusal(413, f"the body is larger than {most >> 10} KiB", code="body_too_large")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Also: a page in a browser cannot send this kind to another site unasked.
            raise Refusal(415, "send JSON, with the header Content-Type: application/json", code="not_json")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {_BODY_SECONDS:g} s", code="too_slow") from None
        return bytes(body)

    async def search(self, asked: Asked, watch: Callable[[Ask, Count], None] | None = None) -> Tree:
        """The tree of a request. Raises Refusal where the engine failed."""
        try:
            tree = await self.desk.search(asked.errand, watch)
        except EngineError as error:
            self.gauges.failed()
            log.warning("a search failed: %s", error)
            raise Refusal(503, f"the engine failed: {error}", code="engine_failed", wait=5) from None
        except Refusal:
            raise
        except Exception:  # a bug, but of this request alone
            log.exception("a search was not ended")
            raise Refusal(500, _BUG) from None
        self.gauges.searched(tree)
        return tree

    async def whole(self, reply: Reply, receive: Receive, send: Send) -> int:
        """Answer at once, when the search is done; the status."""
        tree = await unless_gone(receive, self.search(reply.asked))
        await as_json(reply.whole(tree))(_HTTP, receive, send)
        return 200

    async def stream(self, reply: Reply, receive: Receive, send: Send) -> int:
        """Answer bit by bit; the status that it came to. What goes wrong after the beginning is an event."""

        async def say(data: bytes, *, more: bool = True) -> None:
            if data or not more:
                await send({"type": "http.response.body", "body": data, "more_body": more})

        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        headers.append((b"x-accel-buffering", b"no"))  # a proxy is to pass on what there is
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await say(reply.begin())
        status = 200
        try:
            tree = await unless_gone(receive, self._grow(reply, say))
            for data in reply.end(tree):
                await say(data)
        except Refusal as refusal:
            status = refusal.status
            await say(event(refusal.body()))
        await say(DONE, more=False)
        return status

    async def _grow(self, reply: Reply, say: Callable[[bytes], Coroutine[Any, Any, None]]) -> Tree:
        """Search, say each step of a single chain as it is decided, and where nothing is said how far it is."""
        news: asyncio.Queue[list[str] | None] = asyncio.Queue()
        straight, spent = grows_straight(reply.asked), Count()

        def watch(asked: Ask, count: Count) -> None:
            nonlocal spent
            spent = count
            if straight and (steps := steps_so_far(asked)):
                news.put_nowait(steps)

        search = asyncio.ensure_future(self.search(reply.asked, watch))
        search.add_done_callback(lambda _: news.put_nowait(None))
        try:
            while True:
                try:
                    async with asyncio.timeout(self.menu.limits.heartbeat):
                        steps = await news.get()
                except TimeoutError:
                    await say(comment(f"{spent.policy_tokens} tokens in {spent.requests} requests so far"))
                    continue
                if steps is None:
                    return await search
                await say(reply.more(steps))
        finally:
            search.cancel()
            await asyncio.gather(search, return_exceptions=True)

    # ---------------------------------------------------------------- the rest

    async def models(self, request: Request) -> Response:
        """All names, or the one asked for."""
        names = self.menu.models()
        if "model" in request.path_params:
            name = request.path_params["model"]
            try:
                self.menu.chosen(name)
            except Refusal as refusal:
                return _refuse(refusal)
            return as_json(self._model(name))
        return as_json({"object": "list", "data": [self._model(name) for name in names]})

    def _model(self, name: str) -> dict[str, Any]:
        policy, value = self.engines.policy, self.engines.value
        own = {
            "method": self.menu.chosen(name)[0] or self.menu.config.search.method,
            "policy": policy.identity,
            "value": None if value is None else value.identity,
            "engine": self.engines.kind,
        }
        return {"id": name, "object": "model", "created": self._began, "owned_by": "restmcts", OWN: own}

    async def health(self, request: Request) -> Response:
        """Whether requests are taken, and whether the last ones could be answered."""
        failing = self.gauges.failed_in_a_row >= FAILING_AFTER
        said = "ending" if self.desk.ending else "failing" if failing else "ok"
        return as_json({"status": said}, 200 if said == "ok" else 503)

    async def metrics(self, request: Request) -> Response:
        """See gauges.py."""
        return PlainTextResponse(self.gauges.text(), media_type=KIND)


def make_app(service: Service, key: str | None) -> ASGIApp:
    """The whole application; with a key, for those who know it."""
    routes = [
        Route(COMPLETIONS, service, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/v1/models/{model:path}", service.models),
        Route("/metrics", service.metrics),
        Route(HEALTH, service.health),
    ]

    async def not_there(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        refusal = Refusal(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}")
        return as_json(refusal.body(), refusal.status, error.headers)

    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: not_there}), key)


class Guard:
    """Lets those in who know the key. Where there is none, those who come by a name of this machine's own: another
    site's page could reach it by a name that leads here.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # nothing else is spoken here
            return
        refusal = None if scope["path"] == HEALTH else self._refusal(Request(scope))
        await (self._app if refusal is None else _refuse(refusal))(scope, receive, send)

    def _refusal(self, request: Request) -> Refusal | None:
        if self._key is None:
            if is_local(host_of(request.headers.get("host", ""))):
                return None
            return Refusal(403, "this server is for its own machine; ask it as localhost", code="wrong_host")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = secrets.compare_digest(given.strip().encode("latin-1"), self._key)
        if scheme.lower() == "bearer" and known:
            return None
        return Refusal(401, "the key is missing or wrong: Authorization: Bearer KEY", code="invalid_api_key")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Raises Gone when the client goes away first; then it is given up, and ended, before that."""

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def _impatient(send: Send) -> Send:
    """`send` that raises Gone for a client which is still there and takes nothing in."""

    async def send_soon(message: Any) -> None:
        try:
            async with asyncio.timeout(_REPLY_SECONDS):
                await send(message)
        except TimeoutError:
            raise Gone from None

    return send_soon


_HTTP: Scope = {"type": "http"}
"""all that a plain response wants to know of its request"""


def as_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Plain data as a response. ASCII, for a model may write half a character."""
    return Response(json.dumps(content), status, headers, "application/json")


def _refuse(refusal: Refusal) -> Response:
    return as_json(refusal.body(), refusal.status, refusal.headers())


def _fingerprint(engines: Engines) -> str:
    """Names what answers: the same request with the same seed is answered alike while this is the same."""
    value = None if engines.value is None else engines.value.identity
    named = f"{__version__} {engines.kind} {engines.policy.identity} {value}"
    return f"fp_{hashlib.sha256(named.encode()).hexdigest()[:12]}"
