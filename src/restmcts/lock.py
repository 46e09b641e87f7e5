"""One process at a time in a run folder."""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from restmcts.errors import StoreError
from restmcts.files import PART, explained


class Lock:
    """A file that names its owner. One left behind by a process that is gone is taken over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mine: dict[str, Any] | None = None
        with explained(path), _one_at_a_time(path.parent):
            try:
                self._create()
            except FileExistsError:
                holder = _holder(path)
                if holder is not None and _alive(holder):
                    raise StoreError(_in_use(path, holder)) from None
                self._take_over(holder)
        atexit.register(self.release)

    def release(self) -> None:
        """Remove the lock if it is still ours."""
        # A forked child inherits this object, but not the ownership.
        if self._mine is not None and self._mine["pid"] == os.getpid() and _holder(self.path) == self._mine:
            with suppress(OSError):
                self.path.unlink()
        self._mine = None
        atexit.unregister(self.release)

    def _create(self) -> None:
        mine = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "process_started": _process_start(os.getpid()),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        raw = json.dumps(mine).encode()
        part = self._beside()
        try:
            part.write_bytes(raw)
            os.link(part, self.path)  # there at once and whole, on network file systems too
        except FileExistsError:
            raise
        except OSError:  # no hard links here
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
        finally:
            part.unlink(missing_ok=True)
        self._mine = mine

    def _take_over(self, stale: Mapping[str, Any] | None) -> None:
        """Put our lock in the place of one whose owner is gone, unless another process is quicker."""
        aside = self._beside()
        with suppress(FileNotFoundError):
            self.path.rename(aside)
            if (found := _holder(aside)) != stale and found is not None:
                aside.rename(self.path)
                raise StoreError(_in_use(self.path, found))
            aside.unlink()
        try:
            self._create()
        except FileExistsError:
            raise StoreError(_in_use(self.path, _holder(self.path) or {})) from None

    def _beside(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}{PART}")


def held(path: Path) -> bool:
    """Whether a process that is alive, as far as can be known here, holds the lock at `path`."""
    holder = _holder(path)
    return holder is not None and _alive(holder)


def _holder(path: Path) -> dict[str, Any] | None:
    """Who holds the lock; None when its file is gone or was never written to the end."""
    try:
        holder = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return holder if isinstance(holder, dict) and isinstance(holder.get("pid"), int) else None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time look at the lock and take it over; the kernel frees it on death."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # no flock on this file system: creating the lock file is still exclusive
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _alive(holder: Mapping[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname():
        return True  # nobody here can know
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError):  # none of that number, or no number of a process
        return False
    except PermissionError:
        pass
    # The number may have been given to another process since.
    started = _process_start(holder["pid"])
    return started is None or holder.get("process_started") in (None, started)


def _process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks since boot; None where /proc does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return f"{boot}:{stat.rpartition(')')[2].split()[19]}"


def _in_use(path: Path, holder: Mapping[str, Any]) -> str:
    if holder.get("host") == socket.gethostname():
        return f"{path.parent} is in use by process {holder['pid']}; wait for it, stop it, or use another --out"
    return (
        f"{path.parent} is in use by process {holder.get('pid')} on {holder.get('host')}; use another --out, "
        f"or delete {path} if that process is gone"
    )
