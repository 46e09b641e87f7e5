"""Settings of the trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from restmcts.settings import Settings


class Training(Settings):
    """What all trainings share."""

    method: Literal["lora", "full"] = Field(
        default="lora", description="lora: low-rank updates, merged when training ends; full: every weight"
    )
    lora_rank: int = Field(default=16, ge=1, le=1024, description="rank of the updates; their scale is fixed at 2")
    lora_layers: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the layers, counted from the top, that get LoRA updates; less is faster and learns less",
    )
    learning_rate: float = Field(default=2e-4, gt=0, le=1, description="peak learning rate of AdamW")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="how the learning rate goes after the warm-up: to zero, or not at all"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the optimizer steps spent warming up")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW's weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients longer than this are shortened to it")
    micro_tokens: int | None = Field(
        default=None,
        ge=16,
        description="most tokens of a forward pass, shared ones counted once (None: 1024 on a CPU, 16384 on a GPU); "
        "lower it when memory is short",
    )
    max_length: int = Field(default=1024, ge=16, description="longest row in tokens, prompt included")
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="of the arithmetic; auto: bfloat16 where the hardware is fast at it and the base is not float32",
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, 30 % slower")
    start: Literal["previous", "base"] = Field(
        default="previous", description="train the previous round's model further, or the first one anew on all rows"
    )
    checkpoint_seconds: float = Field(
        default=120.0, ge=0, description="time between checkpoints, from which a killed training goes on"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="auto: the first GPU that CUDA_VISIBLE_DEVICES leaves visible, else the CPU",
    )


class RowTraining(Training):
    """Training on traces, packed (`train.packing`)."""

    epochs: int = Field(default=3, ge=1, le=1000, description="how often each row is seen")
    batch_tokens: int = Field(
        default=2048,
        ge=16,
        description="tokens of an optimizer step: all tokens of each trace, whether or not it shares them with others",
    )
    accelerate: Path | None = Field(
        default=None,
        description="a configuration of `accelerate launch`, by which this training uses several GPUs of this machine; "
        "unset: this process alone trains",
    )


class PolicyTraining(RowTraining):
    """SFT on correct traces."""

    traces_per_question: int | None = Field(default=4, ge=1, description="at most so many traces of one question")
    pick: Literal["value", "random"] = Field(
        default="value", description="which of them: the highest-valued ones, or a random draw"
    )


class ValueTraining(RowTraining):
    """Regression on the quality value of every labelled step (Eq. 37)."""

    loss: Literal["mse", "bce"] = Field(
        default="mse", description="squared error on v (the paper's), or cross-entropy with v as a soft label"
    )
    head_learning_rate: float | None = Field(
        default=1e-3, gt=0, le=1, description="peak learning rate of the scalar head; None: that of the rest"
    )
    traces_per_question: int | None = Field(
        default=16, ge=1, description="at most so many leaves of one question's trees, half right and half wrong"
    )
    validation: float = Field(
        default=0.0, ge=0, le=0.5, description="share of the questions kept out of training to measure the error on"
    )


class PreferenceTraining(Training):
    """DPO on pairs (Rafailov et al. 2023): −log σ(β · (log-ratio of the better − log-ratio of the worse))."""

    learning_rate: float = Field(default=2e-5, gt=0, le=1, description="peak learning rate of AdamW")
    epochs: int = Field(default=1, ge=1, le=1000, description="how often each pair is seen")
    batch_pairs: int = Field(default=16, ge=1, description="pairs of an optimizer step")
    beta: float = Field(default=0.1, gt=0, description="β: how strongly the policy is held to what it was before")
    sft_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the better side's own negative log likelihood, added to the loss; it keeps the better "
        "side from becoming less likely along with the worse one",
    )
    pairs_per_question: int | None = Field(default=4, ge=1, description="at most so many pairs of one question")
    margin: float = Field(
        default=0.1, ge=0, le=1, description="least difference between the two sides' values (or scores) for a pair"
    )


class OnlineTraining(Training):
    """GRPO (Shao et al. 2024): solutions are sampled, graded and learned from, group by group, all the time."""

    learning_rate: float = Field(default=5e-5, gt=0, le=1, description="peak learning rate of AdamW")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="constant", description="how the learning rate goes after the warm-up: to zero, or not at all"
    )
    steps: int = Field(default=40, ge=1, description="optimizer steps in each round")
    questions: int = Field(default=8, ge=1, description="questions of one step")
    samples: int = Field(default=8, ge=2, description="G: solutions sampled of each question, which are compared")
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    tokens: int = Field(default=256, ge=1, description="most tokens of a solution")
    kl: float = Field(default=0.0, ge=0, description="β: weight of the divergence from the policy of before")
    process_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the process rewards (w of Eq. 2, inferred from the tree that the solutions of a "
        "question make) beside the outcome; 0: outcome alone",
    )
