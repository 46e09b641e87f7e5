"""Opening engines on transformers models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from restmcts import models
from restmcts.encoding import Encoder, PromptSettings
from restmcts.engines import Engines
from restmcts.engines.generate import TransformersPolicy
from restmcts.engines.score import TransformersValue, read_label
from restmcts.engines.settings import EngineSettings
from restmcts.errors import EngineError
from restmcts.types import Problem


def load_policy(
    spec: str | Path, prompt: PromptSettings, settings: EngineSettings, examples: Sequence[Problem] = ()
) -> TransformersPolicy:
    """Open a causal language model; `examples` are worked problems shown before each question (few-shot)."""
    if Path(spec).is_dir() and models.is_value_model(spec):
        raise EngineError(f"{str(spec)!r} is a value model, not a policy; give the policy folder")
    device = models.pick_device(settings.device)
    encoder = Encoder(models.load_tokenizer(spec), models.read_prompt(spec) or prompt, examples)
    with models.one_thread():
        model = models.load_causal(spec, dtype=models.pick_dtype(settings.dtype, device), device=device)
        return TransformersPolicy(model, encoder, settings, identify(spec))


def load_value(spec: str | Path, prompt: PromptSettings, settings: EngineSettings) -> TransformersValue:
    """Open a value model: a token classifier with one label, as `restmcts train value` writes it, or a public PRM.

    Which family of PRM it is says its config or a prefix, `rlhflow:NAME` (see `engines.prm`).
    """
    device = models.pick_device(settings.device)
    dtype = models.pick_dtype(settings.dtype, device)
    style = models.prm_style(spec)
    if style is not None:
        from restmcts.engines.prm import load_prm

        name = models.named_style(spec)[1]
        with models.one_thread():
            prm = load_prm(style, name, separator=prompt.delimiter, dtype=dtype, device=device)
            return TransformersValue(prm.model, prm.encoder, prm.read, settings, f"{style}:{identify(name)}")
    if not models.is_value_model(spec):
        raise EngineError(
            f"{str(spec)!r} is a language model, not a value model; train one with restmcts train value, or say which "
            f"kind of process reward model it is: math-shepherd:{spec} or rlhflow:{spec}"
        )
    encoder = Encoder(models.load_tokenizer(spec), models.read_prompt(spec) or prompt)
    with models.one_thread():
        model = models.load_token_classifier(spec, dtype=dtype, device=device)
        return TransformersValue(model, encoder, read_label(model), settings, identify(spec))


def load_engines(
    policy: str | Path,
    value: str | Path | None = None,
    prompt: PromptSettings | None = None,
    settings: EngineSettings | None = None,
    examples: Sequence[Problem] = (),
) -> Engines:
    """Open a policy and, where given, a value model. The prompt format stored with a checkpoint wins over `prompt`."""
    prompt, settings = prompt or PromptSettings(), settings or EngineSettings()
    opened = load_policy(policy, prompt, settings, examples)
    return Engines(opened, None if value is None else load_value(value, prompt, settings))


def identify(spec: str | Path) -> str:
    """Names a model and, for a folder, its weights: folder name and a hash of its weight files."""
    folder = Path(models.resolve_model(spec))
    if not folder.is_dir():
        return str(spec)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return f"{folder.name}@{digest.hexdigest()[:12]}"
