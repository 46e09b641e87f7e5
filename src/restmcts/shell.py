"""How the command line ends: one line for whatever went wrong, and an exit code that says what kind it was.

0  done                      1  a bug in restmcts (details in a file, or on the screen with --debug)
2  bad input, disk, memory   130  interrupted (Ctrl-C); what is finished is kept
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence

from restmcts import ranks
from restmcts.errors import RestmctsError, is_out_of_memory

_EXTRAS = {
    **dict.fromkeys(
        ("accelerate", "datasets", "gguf", "peft", "pyarrow", "safetensors", "torch", "transformers"), "hf"
    ),
    "reasoning_gym": "demo",
    **dict.fromkeys(("starlette", "uvicorn"), "serve"),
}
"""libraries that are not in the core, and the extra that brings them"""

_OF_THE_SYSTEM = {
    getattr(errno, name)
    for name in "EIO ESTALE EMFILE ENFILE ENAMETOOLONG ELOOP ENOTDIR EISDIR ENOMEM EFBIG ETIMEDOUT ENXIO".split()
}
"""what goes wrong with disks and names"""

DONE, BUG, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


def guarded(command: Callable[[list[str]], int | None], arguments: Sequence[str]) -> int:
    """Run `command` on the arguments (`--debug` taken out, wherever it stands) and return the exit code."""
    debug = "--debug" in arguments
    rest = [argument for argument in arguments if argument != "--debug"]
    try:
        code = command(rest) or DONE
        sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's last breath
        return code
    except KeyboardInterrupt:
        if ranks.is_first():
            _say(f"interrupted; {how_to_resume(rest)}")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except Exception as error:
        if debug:
            traceback.print_exc()
        ranks.let_the_first_speak()
        expected = one_line(error)
        if expected is not None:
            _say(f"error: {expected}")
            return BAD_INPUT
        _say(f"error: unexpected {type(error).__name__}: {_flat(str(error))[:300]}; {_details(error, debug)}")
        return BUG


def one_line(error: BaseException) -> str | None:
    """What to tell about an error that a person can do something about; None for one that is a bug."""
    if isinstance(error, RestmctsError):
        return _flat(str(error))
    if isinstance(error, ModuleNotFoundError) and (extra := _EXTRAS.get(str(error.name).split(".")[0])):
        return f"{error.name} is not installed; run: pip install 'restmcts[{extra}]'"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full{_at(error)}; free some space and run the same command again, finished work is kept"
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return f"no permission{_at(error)}; choose a place you may read and write"
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        return f"{(error.strerror or str(error)).lower()}{_at(error)}; mend that and run the same command again"
    if is_out_of_memory(error):
        return (
            "out of memory; lower engine.max_rows, engine.cache_mb or the training's batch_tokens and run the same "
            "command again, finished work is kept"
        )
    # A usage error of the command line's own parser, which has no public base class to name here.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return f"{_flat(error.format_message()).rstrip('.')} (see --help)"
    return None


def how_to_resume(arguments: Sequence[str]) -> str:
    """The command that takes up the interrupted one; without `--redo`, which would start its stages over again."""
    if ranks.count() > 1:
        return "finished work is kept, go on with the same command"
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--redo"):
            kept.append(argument)
        skip = argument == "--redo"
    if not kept or kept[0] in ("serve", "solve", "version"):
        return "nothing was changed"
    return f"finished work is kept, go on with: restmcts {shlex.join(kept)}"


def _details(error: BaseException, debug: bool) -> str:
    if debug:
        return "this is a bug in restmcts, please report it"
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="restmcts-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as log:
            log.write(text)
    except OSError:
        return "this is a bug in restmcts; run it again with --debug for details"
    return f"this is a bug in restmcts, details are in {log.name}"


def _at(error: OSError) -> str:
    name = str(error.filename or "")
    return f" at {name if len(name) < 200 else name[:200] + '…'}" if name else ""


def _flat(text: str) -> str:
    return " ".join(text.split())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
