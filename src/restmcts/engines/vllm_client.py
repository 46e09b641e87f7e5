"""This program's side of the vLLM process: start it, ask it, exchange its weights, end it.

Starting vLLM takes as long as a small stage of a run. So a process whose policy is closed is kept, and serves the next
policy of the same architecture with that one's weights. It ends with this program, however this program ends.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from restmcts.engines.vllm_process import READY
from restmcts.errors import EngineError

START_SECONDS = 600.0
"""how long vLLM may take to start; a large model is compiled for minutes on a GPU"""
_END_SECONDS = 10.0
_QUIET = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class VllmProcess:
    """vLLM in a process of its own, started on construction; raises EngineError when it cannot start.

    `options` are vLLM's engine arguments and `environment` what its process gets beside this one's. Requests come from
    any event loop; a thread takes the replies. What vLLM prints goes to a file, named when something goes wrong.
    """

    def __init__(self, options: dict[str, Any], environment: dict[str, str], weights: str) -> None:
        self.weights = weights
        """names the weights that are loaded (a folder may get new ones)"""
        self._asleep = False
        self._can_sleep = bool(options.get("enable_sleep_mode"))
        self._numbers = count(READY + 1)
        self._open: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._ended: EngineError | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="restmcts-vllm-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name, "log")
        ready: Future[Any] = Future()
        self._open[READY] = ready
        script = Path(__file__).with_name("vllm_process.py")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                # -P: the script's folder is not searched for modules
                [sys.executable, "-P", str(script), json.dumps(options), self._folder.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**_QUIET, **os.environ, "TMPDIR": self._folder.name, **environment},
                start_new_session=True,  # Ctrl-C is for this program, which then ends vLLM
            )
        self._reader = threading.Thread(target=self._read, name="restmcts-vllm", daemon=True)
        self._reader.start()
        try:
            self.context: int = ready.result(START_SECONDS)["context"]
            del self._open[READY]
        except TimeoutError:
            self.end()
            raise EngineError(f"vLLM did not start within {START_SECONDS:.0f} s; see engine.kind") from None
        except BaseException:
            self.end()
            raise

    @property
    def alive(self) -> bool:
        return self._ended is None

    async def ask(self, kind: str, facts: Any = None) -> Any:
        """The reply to a request. Raises EngineError; cancelling takes the request out of the engine."""
        number, reply = self._post(kind, facts)
        try:
            return await asyncio.wrap_future(reply)
        except asyncio.CancelledError:
            with suppress(EngineError):
                self._send("cancel", number)
            raise
        finally:
            self._open.pop(number, None)

    def load(self, folder: str, weights: str) -> None:
        """Be ready to serve the checkpoint in `folder`, of the same architecture; may take long."""
        if self._asleep:
            self._do("wake")
            self._asleep = False
        if weights != self.weights:
            self.weights = ""  # until it is done, nobody knows which
            self._do("load", folder)
            self.weights = weights

    async def sleep(self) -> None:
        """Give the GPU's memory back until the next `load`; a CPU's process just waits, which costs it no time."""
        if self._can_sleep:
            await self.ask("sleep")
            self._asleep = True

    def end(self) -> None:
        """End the process and forget what it printed. May be called again."""
        with suppress(OSError):
            self._pipe.close()  # it ends by itself when its input does
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if threading.current_thread() is not self._reader:
            self._reader.join()
        self._folder.cleanup()

    def _do(self, kind: str, facts: Any = None) -> None:
        number, reply = self._post(kind, facts)
        try:
            reply.result()
        finally:
            del self._open[number]

    def _post(self, kind: str, facts: Any) -> tuple[int, Future[Any]]:
        number, reply = next(self._numbers), Future[Any]()
        self._open[number] = reply
        self._send(kind, number, facts)
        return number, reply

    @property
    def _pipe(self) -> Any:
        assert self._process.stdin is not None
        return self._process.stdin

    def _send(self, kind: str, number: int, facts: Any = None) -> None:
        line = json.dumps([kind, number, facts]).encode() + b"\n"
        with self._lock:
            if self._ended is not None:
                raise self._ended
            try:
                self._pipe.write(line)
                self._pipe.flush()
            except (OSError, ValueError):  # gone, or closed by `end`
                raise EngineError("vLLM has ended") from None

    def _read(self) -> None:
        """Hand out replies until the process ends; then everything that waits fails."""
        assert self._process.stdout is not None
        reason = ""
        for line in self._process.stdout:
            number, result, *error = json.loads(line)
            reply = self._open.get(number)
            if error and number == READY:
                reason = error[0]
            elif reply is not None and reply.set_running_or_notify_cancel():  # else nobody waits for it any more
                if error:
                    reply.set_exception(EngineError(f"vLLM refuses a request: {_flat(error[0])}"))
                else:
                    reply.set_result(result)
        self._process.stdout.close()
        failure = EngineError(self._epitaph(reason))
        with self._lock:
            self._ended = failure
        for reply in list(self._open.values()):
            if not reply.done() and reply.set_running_or_notify_cancel():
                reply.set_exception(failure)

    def _epitaph(self, reason: str) -> str:
        """Why it ended, with the place of a copy of all it printed."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return (
                "vLLM was killed, most likely for lack of memory; lower engine.cache_mb or set engine.kind=transformers"
            )
        if not reason:
            return f"vLLM has ended with exit code {code}; run the same command again, or set engine.kind=transformers"
        with tempfile.NamedTemporaryFile("wb", prefix="restmcts-vllm-", suffix=".log", delete=False) as kept:
            kept.write(self._log.read_bytes())
        return f"vLLM failed: {_flat(reason)}; details are in {kept.name}; engine.kind=transformers does without it"


# ---------------------------------------------------------------- one process from policy to policy

_kept: tuple[str, VllmProcess] | None = None
_failed: dict[str, EngineError] = {}


def open_process(options: dict[str, Any], environment: dict[str, str], *, fits: str, weights: str) -> VllmProcess:
    """A process that serves the checkpoint `options["model"]`: the one that was kept if it `fits`, else a new one.

    `fits` says all that checkpoints must have in common for their weights to be exchanged in place; `weights` names
    this checkpoint's. What could not start once is not tried again.
    """
    global _kept
    kept, _kept = _kept, None
    if kept is not None:
        if kept[0] == fits and kept[1].alive:
            try:
                kept[1].load(str(options["model"]), weights)
                return kept[1]
            except BaseException as error:
                kept[1].end()
                if not isinstance(error, EngineError):  # a new process may do what this one could not
                    raise
        kept[1].end()
    if fits in _failed:
        raise _failed[fits]
    try:
        return VllmProcess(options, environment, weights)
    except EngineError as error:
        _failed[fits] = error
        raise


def keep_process(process: VllmProcess, fits: str) -> None:
    """Keep a process for the next policy, in place of the one kept before."""
    global _kept
    other, _kept = _kept, (fits, process)
    if other is not None:
        other[1].end()


@atexit.register
def end_kept() -> None:
    """End the process that is kept."""
    global _kept
    kept, _kept = _kept, None
    if kept is not None:
        kept[1].end()


def _flat(text: str) -> str:
    return " ".join(text.split())[:300]
