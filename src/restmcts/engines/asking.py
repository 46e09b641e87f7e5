"""The ways of asking a server for the next step, and which of them a server knows.

- `completions`: `/completions` with the prompt as token ids where the server takes them, else as text. The chat
  template is applied here, so it takes the model's tokenizer; a plain prompt (`prompt.chat=false`) needs none.
- `continue`: `/chat/completions` with the steps so far as an assistant turn to be continued.
- `chat`: `/chat/completions` with the steps so far in the question, asking for the next step only.

What a server knows is found out once, by a handful of requests of a few tokens each. A parameter that it refuses is
left out from then on. Whether it continues a turn shows in the number of prompt tokens: a turn of one token that is
continued adds that token, one that is closed adds its end and the head of the next as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from restmcts.encoding import (
    PLAIN_REPLY,
    Encoder,
    PromptSettings,
    assistant_turn,
    chat_turns,
    critic_question,
    plain_prompt,
    user_turn,
    worked_solution,
)
from restmcts.engines.reading import Reply, read_reply
from restmcts.engines.server import Refused
from restmcts.errors import EngineError
from restmcts.types import Path, Problem

NEXT_STEP = (
    "Write the next step of the solution and nothing else. "
    "When only the final answer is left to be stated, state it as you were told to."
)
EXTRAS: dict[str, Any] = {
    "include_stop_str_in_output": True,  # vLLM: tells a step that ended from a model that did
    "no_stop_trim": True,  # the same for SGLang
    "return_token_ids": True,  # vLLM
    "top_k": -1,  # servers take these from the model's folder or have defaults of their own;
    "min_p": 0.0,  # samples are to be the model's
}
_CONTINUE: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    # (what the request says, what the turn says): vLLM, SGLang, llama.cpp; Mistral, DeepSeek; those who always do
    ({"continue_final_message": True, "add_generation_prompt": False}, {}),
    ({}, {"prefix": True}),
    ({}, {}),
)
_MOST_ADDED = 2
"""prompt tokens that a continued turn of one digit adds: the digit, and at most a space before it"""
_ENOUGH = 8
"""tokens that a probe asks for"""

Post = Callable[[str, Mapping[str, Any], Callable[[Any], Reply]], Reply]


@dataclass(frozen=True, slots=True)
class Way:
    """How one server is asked."""

    kind: Literal["completions", "continue", "chat"]
    as_ids: bool = False
    """the prompt goes as token ids"""
    says: Mapping[str, Any] = field(default_factory=dict)
    """what a request says that continues a turn"""
    turn: Mapping[str, Any] = field(default_factory=dict)
    """what that turn says"""
    left_out: frozenset[str] = frozenset()
    """parameters that the server refuses"""
    several: bool = True
    """the server makes n samples of one request"""
    keeps_stop: bool = False
    """texts come with the stop string that ended them"""

    @property
    def path(self) -> str:
        return "/completions" if self.kind == "completions" else "/chat/completions"


@dataclass(frozen=True, slots=True)
class Asker:
    """Writes requests for one model in one way."""

    model: str
    prompt: PromptSettings
    examples: Sequence[Problem]
    encoder: Encoder | None
    """where the tokenizer is at hand"""
    way: Way

    def body(
        self,
        prompt: Mapping[str, Any],
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int | None,
        stop: Sequence[str],
    ) -> dict[str, Any]:
        """A request, without what the server refuses."""
        chat = self.way.kind != "completions"
        body: dict[str, Any] = {
            "n": n,
            "temperature": temperature,
            "top_p": 1.0,
            "seed": seed,
            "stop": list(stop) or None,
            "logprobs": True if chat else 0,
            **EXTRAS,
            **prompt,
        }
        if self.way.kind == "completions" and self.prompt.chat and not self.way.as_ids:
            body["add_special_tokens"] = False  # vLLM: the template has written them
        kept = {name: value for name, value in body.items() if name not in self.way.left_out and value is not None}
        if not self.way.as_ids:
            kept.pop("return_token_ids", None)
        limit = "max_tokens" if "max_tokens" not in self.way.left_out else "max_completion_tokens"
        return {"model": self.model, limit: max_tokens, **kept}

    def next_step(self, problem: Problem, path: Path, advice: str | None, lead: str) -> dict[str, Any]:
        """The prompt for the step after `path`, of which `lead` is there already."""
        problem = self._plain(problem)
        delimiter = self.prompt.delimiter
        so_far = "".join(step.text + delimiter for step in path) + lead
        if self.way.kind == "completions":
            if self.way.as_ids and self.encoder is not None:
                ids = self.encoder.prompt(problem, advice)
                for step in path:
                    ids += self.encoder.step(step)
                return {"prompt": ids + (self.encoder.text_ids(lead) if lead else [])}
            return {"prompt": self._text(problem, advice) + so_far}
        if self.way.kind == "continue":
            turns = self._turns(chat_turns(self.prompt, self.examples, problem, advice))
            if not so_far:
                return {"messages": turns}
            return {"messages": [*turns, {**assistant_turn(so_far), **self.way.turn}], **self.way.says}
        return {"messages": self._turns(self._one_step(problem, so_far, advice))}

    def critique(self, problem: Problem, path: Path) -> dict[str, Any]:
        """The prompt with the self-critic's question."""
        problem = self._plain(problem)
        if self.way.kind != "completions":
            return {"messages": [user_turn(critic_question(problem, path, self.prompt.delimiter))]}
        if self.encoder is None:
            return {"prompt": critic_question(problem, path, self.prompt.delimiter) + PLAIN_REPLY}
        if self.way.as_ids:
            return {"prompt": self.encoder.critique(problem, path)}
        return {"prompt": self._unmarked(self.encoder.critique_text(problem, path))}

    def _plain(self, problem: Problem) -> Problem:
        """The problem without control tokens in its question, where it is known which those are."""
        if self.encoder is None:
            return problem
        return replace(problem, question=self.encoder.plain(problem.question))

    def _text(self, problem: Problem, advice: str | None) -> str:
        if self.encoder is None:
            return plain_prompt(self.prompt, self.examples, problem, advice)
        return self._unmarked(self.encoder.prompt_text(problem, advice))

    def _unmarked(self, text: str) -> str:
        """Without the mark for the beginning of a text where the server will write it once more."""
        assert self.encoder is not None
        doubled = self.encoder.adds_beginning and "add_special_tokens" in self.way.left_out
        return text.removeprefix(self.encoder.tokenizer.bos_token) if doubled else text

    def _turns(self, turns: list[dict[str, str]]) -> list[dict[str, str]]:
        """For a model that refuses a system message, the instruction leads the first question."""
        if "system" not in self.way.left_out:
            return turns
        instruction, first = turns[0]["content"], turns[1]["content"]
        return [user_turn(f"{instruction}\n\n{first}"), *turns[2:]]

    def _one_step(self, problem: Problem, so_far: str, advice: str | None) -> list[dict[str, str]]:
        """Worked examples are told, not acted: each of their turns would be a whole solution."""
        examples = self.examples if problem.instruction is None else ()
        shown = "".join(f"Problem: {e.question}\nSolution:\n{worked_solution(e)}\n\n" for e in examples)
        system, question = chat_turns(self.prompt, (), problem, advice)
        begun = f"Solution so far:\n{so_far}" if so_far else "Nothing of the solution is written yet.\n"
        return [system, user_turn(f"{shown}Problem: {question['content']}\n\n{begun}\n{NEXT_STEP}")]


# ---------------------------------------------------------------- which way


_QUESTION = Problem("probe", "Count: 1 2 3 4 5 6")
_STOPS = (" ", "\n", "e", "1")
"""one of them ends almost any text at once"""


def find_way(asker: Asker, ask: str, post: Post) -> Way:
    """The first way that works, or the one that `ask` names, with what is known of the server.

    Raises EngineError when the server does not know the model, or none of the ways.
    """
    candidates: list[Way] = []
    if ask == "completions" or (ask == "auto" and (asker.encoder is not None or not asker.prompt.chat)):
        if asker.encoder is not None:
            candidates.append(Way("completions", as_ids=True))
        if asker.encoder is None and asker.prompt.chat:
            raise EngineError(
                "engine.server.ask=completions needs the chat template; give the model's tokenizer "
                "(engine.server.tokenizer), or a plain prompt (prompt.chat=false)"
            )
        candidates.append(Way("completions"))
    if ask != "completions":
        candidates.append(Way("chat"))
    refusal: Refused | None = None
    for way in candidates:
        try:
            way = _without_refused(asker, way, post)
        except Refused as error:
            refusal = error
            continue
        if way.kind == "chat" and ask != "chat":
            return _continuing(asker, way, post, forced=ask == "continue")
        return way
    assert refusal is not None
    raise refusal


def _without_refused(asker: Asker, way: Way, post: Post) -> Way:
    """`way` less the parameters that the server refuses, with what its reply tells. Raises Refused."""
    while True:
        trial = replace(asker, way=way)
        prompt = trial.next_step(_QUESTION, (), None, "")
        body = trial.body(prompt, n=2, max_tokens=_ENOUGH, temperature=1.0, seed=1, stop=_STOPS)
        try:
            reply = post(way.path, body, lambda raw: read_reply(raw, _ENOUGH))
        except Refused as error:
            less = way.left_out | _named(error.said, body, way)
            if error.status not in (400, 422) or less == way.left_out:
                raise
            way = replace(way, left_out=less)
            continue
        keeps = any(choice.finish == "stop" and any(s in choice.text for s in _STOPS) for choice in reply.choices)
        return replace(way, several=len(reply.choices) > 1, keeps_stop=keeps)


def _named(said: str, body: Mapping[str, Any], way: Way) -> frozenset[str]:
    """The parameters that a refusal names; when it names none, all that are not in every server's tongue."""
    optional = (set(body) - {"model", "prompt", "messages", "temperature"}) | {"add_special_tokens"}
    words = set("".join(c if c.isalnum() or c == "_" else " " for c in said.lower()).split())
    named = {name for name in optional if name in words}
    if "n" in named and not any(f"{q}n{q}" in said for q in "'\"`"):
        named.discard("n")  # an n in a sentence
    if way.kind == "chat" and "system" in words:
        named.add("system")
    named -= way.left_out
    if not named:
        named = (set(EXTRAS) | {"add_special_tokens"}) - way.left_out
    if not named:
        named = {"n", "seed", "logprobs", "top_p"} - way.left_out
    return frozenset(named)


def _continuing(asker: Asker, way: Way, post: Post, *, forced: bool) -> Way:
    """`way` as one that continues turns, where the server does; `forced`: also where it cannot be told."""
    delimiter = asker.prompt.delimiter

    def tokens(so_far: str, says: Mapping[str, Any], turn: Mapping[str, Any]) -> int | None:
        """Prompt tokens of a question with the beginning of an answer; None when the server does not say."""
        trial = replace(asker, way=way)
        messages = trial._turns(chat_turns(asker.prompt, asker.examples, _QUESTION))
        if so_far:
            messages.append({**assistant_turn(so_far), **turn})
        prompt = {"messages": messages, **says}
        body = trial.body(prompt, n=1, max_tokens=1, temperature=0.0, seed=None, stop=())
        try:
            return post(way.path, body, lambda raw: read_reply(raw, 1)).prompt_tokens
        except Refused:
            return None

    alone = tokens("", {}, {})
    for says, turn in _CONTINUE if alone is not None else ():
        one = tokens("1", says, turn)
        if one is None or alone is None or not 0 < one - alone <= _MOST_ADDED:
            continue
        # A template that trims the turn would make the model begin with the delimiter, and end there.
        two = tokens("1" + delimiter, says, turn)
        if two is not None and one < two <= one + len(delimiter.encode()):
            return replace(way, kind="continue", says=says, turn=turn)
    if not forced:
        return way
    if alone is not None:
        raise EngineError(
            "engine.server.ask=continue: this server does not continue an assistant turn as it stands; "
            "use engine.server.ask=auto"
        )
    return replace(way, kind="continue", says=_CONTINUE[0][0])
