"""Opening the engines, listening, and ending: what is open then gets a while to end, what is not done is told so."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from restmcts.config import RunConfig
from restmcts.drive import driving
from restmcts.engines import Engines
from restmcts.engines.opening import SCRIPTED
from restmcts.errors import ConfigError
from restmcts.hosts import is_local, web_address
from restmcts.search import UNSCORED
from restmcts.sections import ServeSettings
from restmcts.serve.app import Service, make_app
from restmcts.serve.request import Menu

KEY = "RESTMCTS_SERVE_KEY"
_KEEP_ALIVE = 75
"""seconds that an idle connection is kept: longer than clients keep theirs, so that none is closed as it is used"""
_LAST_WORDS = 5
"""seconds that answers get to be sent, once all searches are over"""
_BACKLOG = 2048


def serve(config: RunConfig, open_engines: Callable[[], Engines], show: Callable[[str], Any]) -> None:
    """Answer requests until Ctrl-C or SIGTERM; `show` is given the base URL once the server listens.

    Raises ConfigError for settings that cannot be served, before any model is loaded where that can be told.
    """
    key = read_key(config.serve)
    check_method(config, scored=config.value is not None or config.policy == SCRIPTED)
    with listening(config.serve) as listener:
        engines = open_engines()
        try:
            server = _Server(config, engines, key)
            show(url_of(listener))
            server.run([listener])
        finally:
            asyncio.run(engines.close())


@contextmanager
def serving(config: RunConfig, engines: Engines) -> Iterator[str]:
    """The same in a thread, for as long as the `with` block lasts: its base URL, which ends in /v1. The engines stay
    open.
    """
    with listening(config.serve) as listener:
        server = _Server(config, engines, read_key(config.serve))
        thread = threading.Thread(target=server.run, args=([listener],), name="restmcts-serve")
        thread.start()
        try:
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join()


def check_method(config: RunConfig, *, scored: bool) -> None:
    """Raise ConfigError when the usual method cannot be served, for it needs a value model."""
    if config.search.method not in UNSCORED and not scored:
        raise ConfigError(
            f"search.method = {config.search.method!r} needs a value model: give --value, "
            f"or --set search.method= with one of {', '.join(sorted(UNSCORED))}"
        )


def read_key(settings: ServeSettings) -> str | None:
    """The key that clients must know, from the environment. Raises ConfigError where it lacks one that is needed."""
    key = os.environ.get(KEY, "").strip() or None
    if key is None and not is_local(settings.host):
        raise ConfigError(
            f"serve.host = {settings.host!r} is open to others: set a key in {KEY}, or listen on 127.0.0.1"
        )
    return key


@contextmanager
def listening(settings: ServeSettings) -> Iterator[socket.socket]:
    """A socket that takes connections. Raises ConfigError when it cannot."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on {settings.host}, port {settings.port}: {reason}; give another --port or --host"
        ) from None
    with listener:
        yield listener


def url_of(listener: socket.socket) -> str:
    """The base URL that clients want."""
    host, port = listener.getsockname()[:2]
    return web_address(str(host), int(port)) + "v1"


class _Server(uvicorn.Server):
    """The web server with our own ending: no request is left without an answer."""

    def __init__(self, config: RunConfig, engines: Engines, key: str | None) -> None:
        menu = Menu(config, scored=engines.value is not None)
        check_method(config, scored=menu.scored)
        self._run_config, self._engines, self._key, self._menu = config, engines, key, menu
        grace = int(config.serve.grace) + _LAST_WORDS
        super().__init__(
            uvicorn.Config(
                self._not_yet,
                log_config=None,
                log_level="error",
                access_log=False,  # questions and keys are nobody's business
                lifespan="off",
                ws="none",
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=grace,
            )
        )

    async def _not_yet(self, scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the application is made when the loop runs")

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Until it is told to end; signals that told it so end there."""
        concurrency = self._run_config.engine.concurrency
        with driving(self._engines, concurrency=concurrency) as drive:
            self._service = Service(self._menu, drive)
            self.config.app = make_app(self._service, self._key)
            with self.capture_signals():
                await self._serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, answer what is open, close."""
        ending = asyncio.ensure_future(self._service.desk.end(self._run_config.serve.grace))
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal asks it to end, the second one at once."""
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # it did what they ask; they are not to be raised again
