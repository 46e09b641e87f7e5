"""Settings of the engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from restmcts.settings import Settings


class ServerSettings(Settings):
    """Models behind an OpenAI-compatible server. The key is read from RESTMCTS_API_KEY, else OPENAI_API_KEY."""

    base_url: str = Field(default="http://127.0.0.1:8000/v1", description="where the policy is served")
    value_url: str | None = Field(default=None, description="where the value model is served; unset: as base_url")
    tokenizer: str | None = Field(
        default=None,
        description="tokenizer of the served models: folder, hub id or `embedded`; lets prompts go as token ids",
    )
    ask: Literal["auto", "completions", "continue", "chat"] = Field(
        default="auto",
        description="by prompt text, by a turn to continue, or for one step a turn; auto: the first that works",
    )
    concurrency: int = Field(default=64, ge=1, description="requests in flight at one server")
    timeout: float = Field(default=300, gt=0, description="seconds until a request counts as lost")
    retries: int = Field(default=6, ge=0, description="how often a request that failed for the moment is sent again")
    seeds: bool = Field(default=True, description="send seeds; turn off for a server that cannot take them")
    judge_tokens: int = Field(default=64, ge=1, description="most tokens a judge may write, its thinking included")


CPU_ROWS_MB = 2048
"""There a process that takes too much is killed; on a GPU it is told so, and takes less."""


class EngineSettings(Settings):
    """How models are run."""

    kind: str = Field(
        default="auto",
        description="auto (on a GPU vllm where it can serve the model, else transformers), "
        "transformers, vllm, openai, scripted",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, …")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_rows: int = Field(default=64, ge=1, description="sequences decoded at once")
    cache_mb: int = Field(
        default=1024, ge=0, description="memory for the prefix cache of each model, MiB; not of vllm on a GPU"
    )
    rows_mb: int | None = Field(
        default=None,
        ge=1,
        description="memory for keys and values of the sequences at work in each model, MiB; unset: 2048 on a CPU, "
        "on a GPU what there is; not of vllm",
    )
    gpu_memory: float = Field(
        default=0.5, gt=0, lt=1, description="vllm on a GPU: its share of the memory; the value model takes of the rest"
    )
    concurrency: int = Field(default=48, ge=1, description="trees open at once")
    server: ServerSettings = Field(default_factory=ServerSettings)

    def rows_bytes(self, device: str) -> int | None:
        """Most bytes for keys and values of the sequences at work on `device`; None: no limit."""
        if self.rows_mb is None:
            return CPU_ROWS_MB << 20 if device == "cpu" else None
        return self.rows_mb << 20
