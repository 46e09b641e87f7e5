"""How a problem and its steps become token ids: the one place that serving and training both call.

Token identity (docs/structure.md): a step keeps the ids it was generated with, and a longer path is its prefix's ids
plus the step's ids, never re-tokenised text. So prefix caches hit, values line up with steps, and training sees exactly
what search saw. This module takes a loaded tokenizer and imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path as FilePath
from typing import Any

from pydantic import Field, model_validator

from restmcts.errors import ConfigError
from restmcts.settings import Settings
from restmcts.types import Path, Problem, Step, Usage, Verdict

CRITIC_QUESTION = (
    "Look at the solution so far. If it already states the correct final answer, reply with the one word SOLVED. "
    "Otherwise reply with one short sentence of advice for the next step."
)
PLAIN_REPLY = "\nReply:"
"""what a plain model is prompted with after the self-critic's question"""
_MARK = "\u2063restmcts\u2063"
_JOINTS = ("\u2060", " ")
"""what goes into a control token that stands in a text: nothing to be seen; a space where a tokenizer overlooks that"""
_KEPT_PROMPTS = 2048
"""prompts whose ids are kept: every step of a search begins with its question's"""


class Shot(Settings):
    """A worked example in a prompt."""

    question: str
    solution: str = Field(description="steps and the answer sentence, as the model is to write them")


class PromptSettings(Settings):
    """How questions are put to the models. Stored with every checkpoint, so that it is served as it was trained."""

    name: str | None = Field(
        default=None,
        description="take what is not set here from a prompt that ships (prompts/) or from a YAML file of your own",
    )
    instruction: str = Field(
        default='Solve the problem step by step, one short step per line. End with a line "Answer: X".',
        description="system message (chat models) or first line (plain models)",
    )
    delimiter: str = Field(default="\n", min_length=1, description="text that ends a step")
    chat: bool = Field(default=True, description="use the tokenizer's chat template; false for plain base models")
    question: str = Field(
        default="Question: {question}\nSolution:\n", description="how a base model is asked; holds {question}"
    )
    examples: tuple[Shot, ...] = Field(default=(), description="worked examples before every question (few-shot)")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, raw: Any) -> Any:
        """Put the prompt that `name` names under what is set, so that all of it is stored, and the name no longer."""
        if not isinstance(raw, Mapping) or raw.get("name") is None:
            return raw
        return {**read_prompt(str(raw["name"])), **raw, "name": None}

    @model_validator(mode="after")
    def _asks(self) -> PromptSettings:
        if "{question}" not in self.question:
            raise ValueError("prompt.question must hold {question}, where the question goes")
        return self


def prompts() -> list[str]:
    """Names of the prompts that ship."""
    folder = resources.files("restmcts") / "prompts"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_prompt(name: str) -> dict[str, Any]:
    """A prompt that ships, or the YAML file `name`, as plain settings. Raises ConfigError naming what is wrong."""
    import yaml

    if name in prompts():
        text = (resources.files("restmcts") / "prompts" / f"{name}.yaml").read_text("utf-8")
    else:
        try:
            text = FilePath(name).read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise ConfigError(
                f"prompt.name={name!r} is no prompt and no file; give one of {', '.join(prompts())}, or a YAML file"
            ) from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{name}{f', line {mark.line + 1}' if mark else ''}: not YAML; mend it") from None
    except (ValueError, TypeError, RecursionError, OverflowError) as error:  # dates that are none, nesting without end
        raise ConfigError(f"{name}: YAML that cannot be read ({str(error)[:100]}); mend it") from None
    allowed = PromptSettings.model_fields.keys() - {"name"}
    if not isinstance(raw, dict) or not raw.keys() <= allowed:
        wrong = sorted(map(str, raw.keys() - allowed)) if isinstance(raw, dict) else [type(raw).__name__]
        raise ConfigError(f"{name}: {wrong[0]} is no prompt setting; use {', '.join(sorted(allowed))}")
    return raw


@dataclass(frozen=True, slots=True)
class Encoded:
    """A trace as token ids. `ends[k]` is the index in `ids` of the last token of step k: its value is read there."""

    ids: list[int]
    prompt_length: int
    ends: list[int]


class Encoder:
    """Turns problems and steps into ids for one tokenizer and one prompt format.

    `examples` are worked problems shown before the question, after those of the prompt itself, for a model that was
    never trained on the format. Control tokens of the chat format that stand in a question, an example or a step are
    text like any other: what a question says opens no turn and ends none (see `plain`).
    Raises ConfigError for a tokenizer without a chat template when `prompt.chat` asks for one.
    """

    def __init__(self, tokenizer: Any, prompt: PromptSettings, examples: Sequence[Problem] = ()) -> None:
        if prompt.chat and not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; "
                "use a chat model, or a plain prompt with --set prompt.chat=false"
            )
        self.tokenizer = tokenizer
        self.prompt_settings = prompt
        self.examples = tuple(
            replace(e, question=self.plain(e.question), solution=None if e.solution is None else self.plain(e.solution))
            for e in shown_examples(prompt, examples)
        )
        self.delimiter = prompt.delimiter
        self._prompt_ids = lru_cache(_KEPT_PROMPTS)(self._tokenized)

    @cached_property
    def tokenizer_id(self) -> str:
        """A fingerprint of the vocabulary: step ids of one tokenizer mean nothing to another."""
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()), ensure_ascii=True)
        return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]

    @cached_property
    def end_of_turn(self) -> tuple[int, ...]:
        """Ids appended after the last step in training: what the chat template writes after an assistant turn."""
        if self.prompt_settings.chat:
            text = self._template([user_turn("?"), assistant_turn(_MARK)], generation=False)
            ids = self._ids(text.rpartition(_MARK)[2].strip())
            if ids:
                return tuple(ids[:1])
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(
                f"the tokenizer of {self.tokenizer.name_or_path!r} has no end-of-text token; set its eos_token"
            )
        return (self.tokenizer.eos_token_id,)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end generation."""
        eos = self.tokenizer.eos_token_id
        return frozenset(self.end_of_turn) | (frozenset() if eos is None else {eos})

    def prompt(self, problem: Problem, advice: str | None = None) -> list[int]:
        """The ids before the first step."""
        return list(self._prompt_ids(problem.question, problem.instruction, advice))

    def _tokenized(self, question: str, instruction: str | None, advice: str | None) -> tuple[int, ...]:
        text = self.prompt_text(Problem("", question, instruction=instruction), advice)
        return tuple(self._ids(text, special=not self.prompt_settings.chat))

    def prompt_text(self, problem: Problem, advice: str | None = None) -> str:
        """The text before the first step, with what the chat template adds."""
        problem = replace(problem, question=self.plain(problem.question))
        advice = None if advice is None else self.plain(advice)
        if not self.prompt_settings.chat:
            return plain_prompt(self.prompt_settings, self.examples, problem, advice)
        turns = chat_turns(self.prompt_settings, self.examples, problem, advice)
        return self._render(turns if self._takes_system else _led(turns), generation=True)

    @cached_property
    def shared_length(self) -> int:
        """How many leading ids all prompts have in common (instruction, examples): worth computing once."""
        return shared_length(self.prompt)

    @cached_property
    def adds_beginning(self) -> bool:
        """Whether the tokenizer puts its mark for the beginning before a text."""
        mark = self.tokenizer.bos_token_id
        return mark is not None and self._ids("a", special=True)[:1] == [mark]

    def step(self, step: Step) -> list[int]:
        """The ids of one step: its own where it has them, else its text with the delimiter."""
        return list(step.ids) if step.ids is not None else self.text_ids(self.plain(step.text) + self.delimiter)

    def text_ids(self, text: str) -> list[int]:
        """The ids of a piece of text that stands within a sequence."""
        return self._ids(text)

    def trace(self, problem: Problem, path: Path) -> Encoded:
        """Prompt and steps in one sequence: the input of the value model and of policy training."""
        ids = self.prompt(problem)
        prompt_length = len(ids)
        ends = []
        for step in path:
            ids += self.step(step)
            ends.append(len(ids) - 1)
        return Encoded(ids, prompt_length, ends)

    def critique(self, problem: Problem, path: Path) -> list[int]:
        """The ids of the self-critic's question about a partial solution."""
        return self._ids(self.critique_text(problem, path), special=not self.prompt_settings.chat)

    def critique_text(self, problem: Problem, path: Path) -> str:
        """The self-critic's question, with what the chat template adds."""
        question = self.plain(critic_question(problem, path, self.delimiter))
        if not self.prompt_settings.chat:
            return question + PLAIN_REPLY
        return self._template([user_turn(question)], generation=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def plain(self, text: str) -> str:
        """`text` without the control tokens that the tokenizer would see in it: each is broken after its first sign."""
        return self._control.sub(lambda found: found[0][0] + self._joint + found[0][1:], text)

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        """Special tokens, and added ones that the chat template writes; the longest first."""
        tokens = {str(t): t.special for t in getattr(self.tokenizer, "added_tokens_decoder", {}).values()}
        tokens |= dict.fromkeys(self.tokenizer.all_special_tokens, True)
        template = str(getattr(self.tokenizer, "chat_template", None))
        control = (t.strip() for t, special in tokens.items() if special or (t in template and not t.isalnum()))
        return tuple(sorted((t for t in control if len(t) > 1), key=len, reverse=True))

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._control_tokens)) or r"(?!)")

    @cached_property
    def _joint(self) -> str:
        """What breaks every control token: some tokenizers take out what is not to be seen."""
        ids = set(self.tokenizer.convert_tokens_to_ids(list(self._control_tokens)))
        for joint in _JOINTS:
            if not ids & set(self._ids("".join(t[0] + joint + t[1:] for t in self._control_tokens))):
                return joint
        return _JOINTS[-1]

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template accepts a system message; where it does not, the instruction leads the question."""
        message = {"role": "system", "content": _MARK}
        try:
            return _MARK in self._render([message, user_turn("?")], generation=True)
        except Exception:  # templates raise their own jinja2 error for a role they refuse
            return False

    def _template(self, messages: list[dict[str, str]], *, generation: bool) -> str:
        if not self._takes_system and messages[0]["role"] == "user":
            messages = _led([{"role": "system", "content": self.prompt_settings.instruction}, *messages])
        return self._render(messages, generation=generation)

    def _render(self, messages: list[dict[str, str]], *, generation: bool) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        return list(self.tokenizer.encode(whole_characters(text), add_special_tokens=special))


def whole_characters(text: str) -> str:
    """`text` with a replacement sign for every half of a character, which no tokenizer and no server takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shared_length(prompt: Callable[[Problem], Sequence[int]]) -> int:
    """How many leading ids the prompts of two questions that begin differently have in common."""
    one, other = (prompt(Problem("", question)) for question in ("1", "a"))
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)


def shown_examples(prompt: PromptSettings, examples: Sequence[Problem]) -> tuple[Problem, ...]:
    """The worked problems shown before a question: those of the prompt itself, then `examples`."""
    return (*(Problem("", shot.question, solution=shot.solution) for shot in prompt.examples), *examples)


def chat_turns(
    prompt: PromptSettings, examples: Sequence[Problem], problem: Problem, advice: str | None = None
) -> list[dict[str, str]]:
    """The messages that put a question to a chat model: the instruction, the worked examples, the question.

    A problem that brings its own instruction is another kind of question: no example shows how it is answered.
    """
    shown = examples if problem.instruction is None else ()
    turns = [turn for e in shown for turn in (user_turn(e.question), assistant_turn(worked_solution(e)))]
    system = {"role": "system", "content": _instruction(prompt, problem)}
    return [system, *turns, user_turn(_with_advice(problem, advice))]


def plain_prompt(
    prompt: PromptSettings, examples: Sequence[Problem], problem: Problem, advice: str | None = None
) -> str:
    """The same as one text, for a model that knows no turns."""
    shown = examples if problem.instruction is None else ()
    shots = "".join(_plain(prompt, e.question) + worked_solution(e) + "\n\n" for e in shown)
    return _instruction(prompt, problem) + "\n\n" + shots + _plain(prompt, _with_advice(problem, advice))


def critic_question(problem: Problem, path: Path, delimiter: str) -> str:
    """What the self-critic is asked about a partial solution."""
    so_far = delimiter.join(step.text for step in path)
    return f"Problem: {problem.question}\n\nSolution so far:\n{so_far}\n\n{CRITIC_QUESTION}"


def read_verdict(text: str, usage: Usage) -> Verdict:
    """What a model's reply to the self-critic's question says; what is not SOLVED is advice."""
    solved = text.lstrip("*\"' ").upper().startswith("SOLVED")
    return Verdict(solved, None if solved or not text else text, usage)


def worked_solution(example: Problem) -> str:
    """The solution of an example. Raises ConfigError when it has none."""
    if example.solution is None:
        raise ConfigError(f"example {example.id!r} has no worked solution; give it one or leave it out")
    return example.solution


def user_turn(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant_turn(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _instruction(prompt: PromptSettings, problem: Problem) -> str:
    return prompt.instruction if problem.instruction is None else problem.instruction


def _led(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """For a template without system messages: the instruction leads the first question."""
    told, first, *rest = turns
    return [user_turn(f"{told['content']}\n\n{first['content']}"), *rest]


def _with_advice(problem: Problem, advice: str | None) -> str:
    return problem.question if advice is None else f"{problem.question}\n(Hint: {advice})"


def _plain(prompt: PromptSettings, question: str) -> str:
    return prompt.question.replace("{question}", question)


def steps_of(solution: str, delimiter: str = "\n") -> Path:
    """A worked solution cut into steps; blank ones are left out."""
    return tuple(Step(part.strip()) for part in solution.split(delimiter) if part.strip())
