"""Which engine serves the models, and opening it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from restmcts.encoding import PromptSettings
from restmcts.engines import Engines, ValueEngine
from restmcts.engines.settings import EngineSettings
from restmcts.errors import ConfigError, EngineError
from restmcts.models import pick_device
from restmcts.types import Problem

ENGINES = {
    "transformers": "restmcts.engines.transformers",
    "vllm": "restmcts.engines.vllm",
    "openai": "restmcts.engines.openai",
    "scripted": "restmcts.engines.scripted",
}
"""Modules with a function `load_engines(policy, value, prompt, settings, examples) -> Engines`, loaded on first use."""

SCRIPTED = "scripted"
"""the policy, and the value model, that is no model: it is served by the engine of this name"""
SERVED = ("judge:", "pooling:")
"""how the names of value models behind a server begin"""

Say = Callable[[str], None]
_said: set[str] = set()


def load_engines(
    policy: str | Path,
    value: str | Path | None = None,
    prompt: PromptSettings | None = None,
    settings: EngineSettings | None = None,
    examples: Sequence[Problem] = (),
    *,
    say: Say | None = None,
) -> Engines:
    """Open a policy and, where given, a value model with the engine that `settings.kind` names.

    `auto` is transformers on a CPU, where policy and value model take turns on the cores that a process of vLLM would
    fight for (docs/results.md). On a GPU it is vLLM where it is installed and can serve this model, else transformers;
    `say` is then told once, in one line, why it is not vLLM (default: standard error). The prompt format stored with a
    checkpoint wins over `prompt`; `examples` are worked problems shown to the policy before each question.

    Raises EngineError when a model cannot be loaded or its engine is not installed, ConfigError for an engine that
    does not exist.
    """
    settings = settings or EngineSettings()
    kind = SCRIPTED if policy == SCRIPTED else settings.kind
    if kind != "auto":
        return _load(kind, policy, value, prompt, settings, examples)
    if find_spec("torch") is None or pick_device(settings.device) == "cpu":
        return _load("transformers", policy, value, prompt, settings, examples)
    from restmcts.engines import vllm

    reason = vllm.why_not(policy, settings)
    if reason is None:
        try:
            return _load("vllm", policy, value, prompt, settings, examples)
        except EngineError as error:  # transformers serves more models; what it cannot load either, it says itself
            reason = str(error)
    opened = _load("transformers", policy, value, prompt, settings, examples)
    line = f"models are served by transformers: {reason}"
    if line not in _said:
        _said.add(line)
        (say or _to_stderr)(line)
    return opened


def load_value(value: str | Path, prompt: PromptSettings, settings: EngineSettings) -> ValueEngine:
    """Open a value model alone, as `load_engines` would beside a policy; `scripted` is the one that is no model.

    Raises EngineError when it cannot be loaded or its engine is not installed.
    """
    kind = SCRIPTED if value == SCRIPTED else "openai" if str(value).startswith(SERVED) else "transformers"
    opened: ValueEngine = _module(kind).load_value(value, prompt, settings)
    return opened


def _load(
    kind: str,
    policy: str | Path,
    value: str | Path | None,
    prompt: PromptSettings | None,
    settings: EngineSettings,
    examples: Sequence[Problem],
) -> Engines:
    if kind not in ENGINES:
        raise ConfigError(f"engine.kind = {kind!r}: there is no such engine; there are: auto, {', '.join(ENGINES)}")
    opened: Engines = _module(kind).load_engines(policy, value, prompt, settings, examples)
    return dataclasses.replace(opened, kind=kind)


def _module(kind: str) -> Any:
    try:
        return import_module(ENGINES[kind])
    except ModuleNotFoundError as error:
        remedy = "pip install 'restmcts[openai]'" if kind == "openai" else "pip install 'restmcts[hf]'"
        raise EngineError(f"the engine {kind!r} needs {error.name}, which is not installed; run: {remedy}") from None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
