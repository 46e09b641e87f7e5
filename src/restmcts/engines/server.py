"""A connection to an OpenAI-compatible server: how many requests at once, when to ask again, when to give up.

Requests live on an event loop of their own, in a thread, so that connections outlast the loops that ask: a run
searches, evaluates and closes its engines under different ones. Asking again happens here and nowhere else: here it is
known what the server said (`Retry-After` holds back every request, not just the one it was told to), only the request
that failed is sent again and not its siblings, and what comes back broken counts as not come back. So the client's own
retries are off, and drive is told not to repeat what failed here.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai

from restmcts.engines import TransientError
from restmcts.engines.settings import ServerSettings
from restmcts.errors import ConfigError, EngineError

T = TypeVar("T")

KEYS = ("RESTMCTS_API_KEY", "OPENAI_API_KEY")
FIRST_PAUSE = 0.5
"""seconds before a request is sent again; each further pause is twice as long, give or take half"""
LONGEST_PAUSE = 30.0
LARGEST_REPLY = 64 << 20
"""bytes; a server that sends more is not answering the question"""
GONE_AFTER = 16
"""requests given up in a row, with none answered between, after which the server counts as gone for good"""
_NOT_NOW = frozenset({408, 409, 425, 429})
_TOO_LONG = ("context_length", "context length", "context size", "context window", "exceed_context", "maximum length")


class Junk(ValueError):
    """A reply that is none: not JSON, not of the form that was asked for, or without what was asked for."""


class Refused(EngineError):
    """The server does not take the request as it is (400, 404, 405, 422, 501)."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status = status
        self.said = said


class TooLong(TransientError):
    """The prompt does not fit the model's context."""


class _Trouble(Exception):
    """It did not work this time. `wait` is what the server asked for, in seconds."""

    def __init__(self, said: str, *, wait: float | None = None, unreachable: bool = False) -> None:
        super().__init__(said)
        self.wait = wait
        self.unreachable = unreachable


class Server:
    """One server, shared by all that is asked of it."""

    def __init__(self, url: str, settings: ServerSettings) -> None:
        self.url = _checked(url)
        self._settings = settings
        self._key = next((key for name in KEYS if (key := os.environ.get(name, "").strip())), None)
        self._open_at = 0.0
        self._given_up = 0
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="restmcts-server", daemon=True)
        self._thread.start()
        self._call(self._begin).result()

    @property
    def place(self) -> str:
        """Host and port, for names."""
        return urlsplit(self.url).netloc

    async def ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """POST `body` and return what `read` makes of the reply; Junk that it raises is asked again.

        `path` is relative to the server's URL, or absolute on its host. Raises Refused when the server does not take
        the request, TransientError when it did not answer however often it was asked, EngineError when it is gone for
        good. A caller that is cancelled waits until the request is: no connection is left at work.
        """
        began: list[asyncio.Task[Any]] = []
        call = self._call(lambda: self._ask(path, body, read), began)
        try:
            return await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            if self._closed:
                raise EngineError("the engine was closed") from None
            call.cancel()
            await asyncio.wrap_future(self._call(lambda: _ended(began)))
            raise

    def ask_now(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """The same without an event loop, for when engines are opened."""
        return self._call(lambda: self._ask(path, body, read)).result()

    def models(self) -> list[str]:
        """The models that the server lists; empty when it does not say."""
        try:
            listed = self._call(self._list).result()
            return [str(model["id"]) for model in listed["data"]]
        except (EngineError, _Trouble, Junk, LookupError, TypeError):
            return []

    def close(self) -> None:
        """Cancel what is in flight and close all connections; may be called again."""
        if not self._closed:
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    # ------------------------------------------------------------------ on the server's loop

    def _call(
        self, work: Callable[[], Coroutine[Any, Any, T]], began: list[asyncio.Task[Any]] | None = None
    ) -> Future[T]:
        """Start `work` there; its task is put into `began`."""
        if self._closed:
            raise EngineError("the engine was closed")

        async def counted() -> T:
            task = asyncio.current_task()
            assert task is not None
            if began is not None:
                began.append(task)
            self._running.add(task)
            try:
                return await work()
            finally:
                self._running.discard(task)

        return asyncio.run_coroutine_threadsafe(counted(), self._loop)

    async def _begin(self) -> None:
        width = self._settings.concurrency
        self._slots = asyncio.Semaphore(width)
        http = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=width, max_keepalive_connections=width),
            timeout=httpx2.Timeout(None),  # an attempt has one limit for everything, slow drips included
            event_hooks={"response": [_bound]},
        )
        # A server that wants no key gets a word that is none; without one the client would refuse to start.
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=self.url, max_retries=0, http_client=http
        )

    async def _end(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._client.close()

    async def _ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        began = time.monotonic()
        async with self._slots:  # kept while it pauses: a server in trouble is asked less
            for attempt in range(self._settings.retries + 1):
                await self._until_open()
                try:
                    reply = read(await self._once(path, body))
                except (_Trouble, Junk) as error:
                    trouble = error if isinstance(error, _Trouble) else _Trouble(self._clean(f"broken reply: {error}"))
                except Refused as refused:
                    self._give_up(str(refused))
                    raise
                except TooLong:
                    self._given_up = 0
                    raise
                else:
                    self._given_up = 0
                    return reply
                if trouble.wait:
                    self._open_at = max(self._open_at, time.monotonic() + min(trouble.wait, self._settings.timeout))
                elif attempt < self._settings.retries:
                    pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
                    await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        tries = f"asked {self._settings.retries + 1} times in {time.monotonic() - began:.0f} s"
        if trouble.unreachable:
            raise EngineError(f"no server at {self.url} ({trouble}; {tries}); start it, or set engine.server.base_url")
        self._give_up(str(trouble))
        raise TransientError(f"{self.url}: {trouble} ({tries})", again=False)

    def _give_up(self, why: str) -> None:
        """Count a request that was not answered. Raises EngineError when there were too many in a row."""
        self._given_up += 1
        if self._given_up >= GONE_AFTER:
            raise EngineError(f"{self.url} has answered none of the last {self._given_up} requests; the last: {why}")

    async def _until_open(self) -> None:
        """Wait until the server takes requests again; a little longer each, so that not all come back at once."""
        while (left := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, 0.1 + left / 4))

    async def _once(self, path: str, body: Mapping[str, Any]) -> Any:
        """One attempt; the reply as plain data."""
        try:
            async with asyncio.timeout(self._settings.timeout):
                response = await self._client.post(path, body=dict(body), cast_to=httpx2.Response)
        except UnicodeEncodeError:
            raise TransientError("the question holds half a character, which cannot be sent", again=False) from None
        except TimeoutError:
            raise _Trouble(f"no reply within {self._settings.timeout:g} s") from None
        except openai.APIStatusError as error:
            raise self._refusal(error, path, str(body.get("model"))) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
            unreachable = isinstance(cause, httpx2.ConnectError)
            said = self._clean(str(cause or error)) or type(cause or error).__name__
            raise _Trouble(f"connection lost: {said}", unreachable=unreachable) from None
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError):
            raise Junk("not JSON") from None

    async def _list(self) -> Any:
        async with asyncio.timeout(min(self._settings.timeout, 10)):
            try:
                return (await self._client.get("/models", cast_to=httpx2.Response)).json()
            except (openai.OpenAIError, httpx2.HTTPError, ValueError, RecursionError):
                raise Junk("no list") from None

    def _refusal(self, error: openai.APIStatusError, path: str, model: str) -> Exception:
        """What a status other than 200 means."""
        status, said = error.status_code, self._clean(_message(error))
        if status in (401, 403):
            what = "refused the key" if self._key else "wants a key"
            return EngineError(f"{self.url} {what} ({status}: {said}); set {KEYS[0]} in the environment")
        if status == 429 and error.code == "insufficient_quota":
            return EngineError(f"{self.url}: {said} (429, insufficient_quota); more requests will not help")
        if status in _NOT_NOW or (status >= 500 and status != 501):
            return _Trouble(f"{status} {said}", wait=_retry_after(error.response.headers))
        if status in (400, 413, 422) and any(hint in f"{error.code} {said}".lower() for hint in _TOO_LONG):
            return TooLong(f"{self.url}: {said} ({status})", again=False)
        url = path if path.startswith("http") else self.url + path
        return Refused(f"{url} does not take the request for model {model!r} ({status}: {said})", status, said)

    def _clean(self, text: str) -> str:
        """One short line that does not hold the key."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:300]


class _Bounded(httpx2.AsyncByteStream):
    """A reply's body that ends in an error when it grows without bound."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > LARGEST_REPLY:
                raise httpx2.ReadError(f"a reply of more than {LARGEST_REPLY >> 20} MiB")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _bound(response: httpx2.Response) -> None:
    response.stream = _Bounded(response.stream)


async def _ended(tasks: list[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(tasks)


def _checked(url: str) -> str:
    """The URL without a slash at its end. Raises ConfigError, which does not repeat a URL that may hold a password."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError("engine.server.base_url is no http(s) address; for example http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ConfigError(f"engine.server.base_url holds a key or a query; keep keys in the environment ({KEYS[0]})")
    return url.rstrip("/")


def _message(error: openai.APIStatusError) -> str:
    """What the server said, wherever it put it."""
    body: Any = error.body
    for name in ("error", "message", "detail"):
        if isinstance(body, Mapping) and name in body:
            body = body[name]
    return str(body if body else error.message)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server wants to be left alone: a number, or a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        said = headers.get(name)
        if said is None:
            continue
        try:
            wait = float(said) / unit
        except ValueError:
            try:
                wait = parsedate_to_datetime(said).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if 0 <= wait < float("inf"):
            return wait
    return None
