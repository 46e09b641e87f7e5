"""Models small enough to be trained from scratch in a minute, and questions they get wrong in part: chains of sums and
products modulo 20, worked from left to right, one operation a step.

    17*6+4-8*3     2+4-8*3 / 6-8*3 / 18*3 / Answer: 14
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from restmcts.encoding import PromptSettings
from restmcts.types import Problem

PROMPT = PromptSettings(chat=False, instruction="", question="{question}\n")
OPERATIONS = 4
MODULUS = 20


def problems(
    count: int, seed: int, name: str, operations: int = OPERATIONS, taken: set[str] | None = None
) -> list[Problem]:
    """`count` different questions with worked solutions, none of them in `taken`, to which they are added."""
    chance, taken = random.Random(seed), set() if taken is None else taken
    made: list[Problem] = []
    while len(made) < count:
        total = chance.randrange(1, MODULUS)
        left = [(chance.choice("+-*"), chance.randrange(2, 10)) for _ in range(operations)]
        question, steps = _written(total, left), []
        while left:
            (sign, number), *left = left
            total = {"+": total + number, "-": total - number, "*": total * number}[sign] % MODULUS
            steps.append(_written(total, left) if left else f"Answer: {total}")
        if question not in taken:
            taken.add(question)
            made.append(Problem(f"{name}-{len(made)}", question, str(total), "\n".join(steps)))
    return made


def _written(total: int, left: list[tuple[str, int]]) -> str:
    return str(total) + "".join(f"{sign}{number}" for sign, number in left)


def write_model(folder: Path, seed: int, *, width: int = 64, layers: int = 2) -> Path:
    """A causal language model with random weights; its tokenizer knows numbers below MODULUS, signs and "Answer: "."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<end>", "<unknown>", "Answer: ", "\n", *"+-*", *map(str, range(MODULUS))]
    tokenizer: Any = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"Answer: |\d+|[^\d]"), "isolated")
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
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
