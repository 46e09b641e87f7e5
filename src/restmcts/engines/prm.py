"""Public process reward models as value models: what each family reads, and where its value stands.

- `qwen`: Qwen2.5-Math-PRM (Zhang et al., arXiv 2501.07301). A token `<extra_0>` after every step; a head with two
  classes, of which the second says "right". Its own code is not needed: `StepClassifier` holds its weights.
- `math-shepherd`: Math-Shepherd (Wang et al., arXiv 2312.08935). A language model that, at the tag `ки` after every
  step, says `+` or `-`.
- `rlhflow`: RLHFlow's PRMs (Xiong et al., 2024). A chat: every step is a user's turn, the assistant says `+` or `-`.
- `trl`: what trl's PRMTrainer makes. A token classifier with two labels, read at the separator after every step.

v is the probability of "right" against "wrong", in [0, 1]. All of them are causal and know nothing of later steps, so
one forward pass holds the values of all prefixes. Steps are read as text: these models' tokens are not the policy's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from transformers import Qwen2Model, Qwen2PreTrainedModel

from restmcts import models
from restmcts.encoding import Encoded, assistant_turn, shared_length, user_turn
from restmcts.engines.score import Read
from restmcts.errors import EngineError
from restmcts.types import Path, Problem

LayOut = Callable[[str, Sequence[str]], tuple[str, list[int]]]
"""A question and its steps → the text to read, and after how many characters of it the question ends and each value
is read: one number more than there are steps. The text ends with the last of them."""

QWEN_TAG, SHEPHERD_TAG = "<extra_0>", "ки"
_QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


class PrmEncoder:
    """Text as a process reward model reads it; see `encoding.Encoder`, whose part it plays for scoring."""

    tokenizer_id: str | None = None
    """it knows no ids but its own: steps are read as text"""

    def __init__(self, tokenizer: Any, lay_out: LayOut, *, special: bool) -> None:
        self._tokenizer = tokenizer
        self._lay_out = lay_out
        self._special = special

    @cached_property
    def shared_length(self) -> int:
        """How many leading ids all questions have in common."""
        return shared_length(lambda problem: self.trace(problem, ()).ids)

    def trace(self, problem: Problem, path: Path) -> Encoded:
        """The ids of a question and its steps; `ends[k]` is where the value of step k is read."""
        text, cuts = self._lay_out(problem.question, [step.text for step in path])
        found = self._tokenizer(text, add_special_tokens=self._special, return_offsets_mapping=True)
        # A mark for the end of the text would stand after the last value: it is at no place in the text.
        stops = [stop for _, stop in found["offset_mapping"]]
        while stops and stops[-1] == 0:
            stops.pop()
        counts = [bisect_right(stops, cut) for cut in cuts]
        return Encoded(found["input_ids"][: counts[-1]], counts[0], [count - 1 for count in counts[1:]])


# ---------------------------------------------------------------- what is read


def _tagged(prompt: str, steps: Sequence[str], tag: str, between: str = "") -> tuple[str, list[int]]:
    """Steps with a tag after each, at whose end a value is read."""
    text, cuts = prompt, [len(prompt)]
    for number, step in enumerate(steps):
        text += (between if number else "") + step + tag
        cuts.append(len(text))
    return text, cuts


def lay_out_qwen(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[str, list[int]]:
    turns = [{"role": "system", "content": _QWEN_SYSTEM}, user_turn(question)]
    return _tagged(_chat(tokenizer, turns), steps, QWEN_TAG)


def lay_out_math_shepherd(question: str, steps: Sequence[str]) -> tuple[str, list[int]]:
    numbered = [step if step.startswith("Step ") else f"Step {k}: {step}" for k, step in enumerate(steps, start=1)]
    return _tagged(f"{question} ", numbered, f" {SHEPHERD_TAG}", between="\n")


def lay_out_trl(separator: str, question: str, steps: Sequence[str]) -> tuple[str, list[int]]:
    return _tagged(question + separator, steps, separator)


def lay_out_rlhflow(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[str, list[int]]:
    """Up to where the assistant would say what it thinks of the last step, having said `+` to those before it.

    Raises EngineError for a chat template that writes earlier turns in another way once there are later ones.
    """
    first = " ".join([question, *steps[:1]]).strip()
    turns = [user_turn(first)]
    text = _chat(tokenizer, turns)
    cuts = [max(text.rfind(first), 0) + len(question), *([len(text)] if steps else [])]
    for step in steps[1:]:
        turns += [assistant_turn("+"), user_turn(step)]
        longer = _chat(tokenizer, turns)
        if not longer.startswith(text):
            raise EngineError(
                f"the chat template of {tokenizer.name_or_path!r} changes earlier turns; it cannot be read step by step"
            )
        text = longer
        cuts.append(len(text))
    return (text, cuts) if steps else (text[: cuts[0]], cuts)


def _chat(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    """The turns and the beginning of the assistant's next one."""
    if not getattr(tokenizer, "chat_template", None):
        raise EngineError(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template, which this model needs")
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


# ---------------------------------------------------------------- what it says


class StepClassifier(Qwen2PreTrainedModel):
    """Qwen2 with two classes at every token, by a head of two layers: Qwen's `Qwen2ForProcessRewardModel`."""

    _keys_to_ignore_on_load_unexpected = (r"lm_head.*",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        width = config.hidden_size
        self.score = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
        self.post_init()


def read_second_class(model: Any) -> Read:
    """P(right) of a head with the classes wrong and right."""
    return lambda hidden: torch.softmax(model.score(hidden).float(), dim=-1)[:, 1]


def read_plus(model: Any, tokenizer: Any) -> Read:
    """P(+) against P(-) as the next token."""
    signs = [tokenizer.encode(sign, add_special_tokens=False)[-1] for sign in "+-"]
    head = model.get_output_embeddings()
    return lambda hidden: torch.softmax(head(hidden)[:, signs].float(), dim=-1)[:, 0]


# ---------------------------------------------------------------- opening


@dataclass(frozen=True, slots=True)
class Prm:
    """A process reward model, ready to be served as value model."""

    model: Any
    encoder: PrmEncoder
    read: Read


def load_prm(style: str, name: str, *, separator: str, dtype: torch.dtype, device: str) -> Prm:
    """Open the model `name` of a family in `models.PRM_STYLES`; `separator` ends the steps of the family `trl`.

    Raises EngineError when it cannot be loaded or is not of that family.
    """
    tokenizer = models.load_tokenizer(name)
    lay_out: LayOut
    if style == "qwen":
        model = models.load_as(StepClassifier, name, dtype=dtype, device=device)
        if len(tokenizer.encode(QWEN_TAG, add_special_tokens=False)) != 1:
            raise EngineError(f"{name!r} does not know the token {QWEN_TAG}; it is no process reward model of Qwen's")
        return Prm(
            model, PrmEncoder(tokenizer, partial(lay_out_qwen, tokenizer), special=False), read_second_class(model)
        )
    if style == "trl":
        model = models.load_token_classifier(name, labels=2, dtype=dtype, device=device)
        encoder = PrmEncoder(tokenizer, partial(lay_out_trl, separator), special=True)
        return Prm(model, encoder, read_second_class(model))
    model = models.load_causal(name, dtype=dtype, device=device)
    chat = style == "rlhflow"
    lay_out = partial(lay_out_rlhflow, tokenizer) if chat else lay_out_math_shepherd
    return Prm(model, PrmEncoder(tokenizer, lay_out, special=not chat), read_plus(model, tokenizer))
