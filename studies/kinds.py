"""What the studies ask, and models small enough to be trained on it from scratch in two minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restmcts.encoding import PromptSettings
from restmcts.types import Problem

PROMPT = PromptSettings(chat=False, instruction="", question="{question}\n")


@dataclass(frozen=True)
class Kind:
    """A kind of question."""

    name: str
    task: str
    draw: Callable[..., list[Problem]]
    """`draw(count, seed, name, size, taken=set(), of_seed=None)`: so many different questions with worked solutions,
    none in `taken`, to which they are added; with `of_seed`, those that this seed's policy may be shown"""
    size: int
    """of the questions that are asked"""
    worked: tuple[tuple[int, int], ...]
    """sizes, and how many worked questions of each a policy learns from: short ones teach single steps sooner"""
    epochs: int
    faultless: Callable[[str, Sequence[str]], bool]
    """(question, steps of a solution with the right answer) → no step of it is wrong"""
    words: tuple[str, ...]
    """all that is ever written, in parts"""
    pieces: str
    """regular expression of such a part"""
    step_tokens: int = 16

    @property
    def limits(self) -> dict[str, Any]:
        """Settings of every search."""
        return {"temperature": 1.0, "step_tokens": self.step_tokens, "max_depth": 8}


def write_model(folder: Path, kind: Kind, seed: int, *, width: int = 96, layers: int = 2) -> Path:
    """A causal language model with random weights, whose tokenizer knows the words of `kind` alone."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<end>", "<unknown>", *kind.words]
    tokenizer: Any = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(kind.pieces), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=width**-0.5,  # the usual 0.02 is for models ten times as wide: this one would learn nothing
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
