"""Settings of the engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from restmcts.settings import Settings


class EngineSettings(Settings):
    """How models are run."""

    kind: str = Field(
        default="auto",
        description="auto (vllm where it can serve the model, else transformers), transformers, vllm, openai, scripted",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, …")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_rows: int = Field(default=64, ge=1, description="sequences decoded at once")
    cache_mb: int = Field(
        default=1024, ge=0, description="memory for the prefix cache of each model, MiB; not of vllm on a GPU"
    )
    gpu_memory: float = Field(
        default=0.5, gt=0, lt=1, description="vllm on a GPU: its share of the memory; the value model takes of the rest"
    )
    concurrency: int = Field(default=48, ge=1, description="trees open at once")
