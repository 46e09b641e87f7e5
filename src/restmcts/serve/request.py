"""What a client asks for: the body of a request, checked against what is offered, as an errand for `drive`.

How to search comes from the settings; over them go, one over the other, the model's name (NAME:METHOD@TOKENS), the
protocol's own parameters, and the section `restmcts` of the request. Of several budgets the smallest holds. What would
change the solution and cannot be done is refused and never passed over.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from restmcts.config import RunConfig, build, first_problem
from restmcts.drive import Errand
from restmcts.errors import RestmctsError
from restmcts.search import SEARCHES, UNSCORED, VARIANTS, SearchSettings, get_search
from restmcts.serve.question import question_of
from restmcts.serve.refusal import Refusal
from restmcts.settings import Settings
from restmcts.tasks import get_task
from restmcts.types import Budget, Problem

OWN = "restmcts"
"""the section of a request, and of a reply, that is not the protocol's"""
BUDGETS = {
    "policy_tokens": ("budget_tokens", "most_policy_tokens"),
    "value_tokens": ("budget_value_tokens", "most_value_tokens"),
    "seconds": ("budget_seconds", "most_seconds"),
}
"""what a request calls its budgets, the settings that they are, and the limits of these"""
_WIDTHS = ("samples", "branch", "rollout_branch", "parallel")
"""settings that say how much is asked of the engine at once"""
_SEEDS = 1 << 63

_PASSED_OVER = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
)
"""parameters that change nothing about a solution"""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
"""parameters that a search cannot do anything about, with the values that ask for nothing"""


class _StreamOptions(Settings):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """padding against listeners; there is none"""


class _Chat(Settings):
    """The parameters of the protocol that a search does something with."""

    model_config = ConfigDict(strict=True)

    model: str
    messages: list[Any]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    seed: int | None = Field(default=None, ge=-_SEEDS, lt=_SEEDS)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    restmcts: dict[str, Any] | None = None


class _Budgets(Settings):
    """Those of the section `restmcts`."""

    model_config = ConfigDict(strict=True)

    policy_tokens: int | None = Field(default=None, ge=1)
    value_tokens: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that can be answered."""

    model: str
    """as the client called it"""
    errand: Errand
    stream: bool = False
    with_usage: bool = False
    """a stream is to end with what it cost"""
    stop: tuple[str, ...] = ()
    """texts before which the solution's text is to end"""
    with_tree: bool = False


class Menu:
    """What is offered: the search methods, over the settings of the server. `scored`: there is a value model."""

    def __init__(self, config: RunConfig, *, scored: bool) -> None:
        self.config = config
        self.limits = config.serve
        self.scored = scored

    def methods(self) -> list[str]:
        """The methods that can be asked for here, variants included."""
        named = {name: name for name in SEARCHES} | {name: own["method"] for name, own in VARIANTS.items()}
        return [name for name, method in named.items() if self.scored or method in UNSCORED]

    def models(self) -> list[str]:
        """The names that a client may give: the usual one first."""
        return [self.limits.name, *(f"{self.limits.name}:{method}" for method in self.methods())]

    def read(self, body: bytes) -> Asked:
        """What a body asks for. Raises Refusal."""
        raw = _parse(body)
        chat = _chat(raw)
        own = dict(chat.restmcts or {})
        with_tree = _flag(own, "tree")
        method, tokens = self.chosen(chat.model)
        question = question_of(chat.messages)
        try:
            task = get_task(str(own.pop("task", None) or self.config.task or "math"))
            settings = self.settings(chat, own, method, tokens)
        except RestmctsError as error:
            raise Refusal(400, str(error), param=OWN, code="invalid_setting") from None
        problem = Problem("question", question, task=task.name)
        seed = self.config.seed if chat.seed is None else chat.seed
        options = chat.stream_options
        stop = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
        if len(stop) > 16 or not all(stop):
            raise Refusal(400, "stop: give up to 16 texts, none of them empty", param="stop")
        return Asked(
            chat.model,
            Errand(problem, get_search(settings.method), settings, seed, task, most=self.most()),
            bool(chat.stream),
            options is not None and bool(options.include_usage),
            tuple(stop),
            with_tree,
        )

    def chosen(self, model: str) -> tuple[str | None, int | None]:
        """The method and the policy tokens that a model's name chooses. Raises Refusal for one that is not offered."""
        rest, at, budget = model.partition("@")
        name, colon, method = rest.partition(":")
        if name == self.limits.name and (not colon or method in self.methods()):
            if not at:
                return method or None, None
            if budget.isascii() and budget.isdigit() and 0 < len(budget) <= 18 and int(budget):
                return method or None, int(budget)
            raise Refusal(400, f"model {model[:100]!r}: after @ comes a number of tokens", param="model")
        offered = self.models()
        near = get_close_matches(rest[:100], offered, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(offered)}"
        if colon and name == self.limits.name and (method in SEARCHES or method in VARIANTS):
            hint = f"{method} needs a value model, and none is served; {hint}"
        raise Refusal(404, f"there is no model {model[:100]!r}; {hint}", param="model", code="model_not_found")

    def settings(self, chat: _Chat, own: dict[str, Any], method: str | None, tokens: int | None) -> SearchSettings:
        """How to search: the server's settings under the request's own. Raises ConfigError or Refusal."""
        named = own.pop("method", None)
        if named is not None and method is not None and named != method:
            raise Refusal(400, f"model says {method!r} and {OWN}.method {str(named)[:50]!r}; say one", param=OWN)
        budgets = self.budgets(chat, tokens, own)
        if chat.temperature is not None:
            own.setdefault("temperature", chat.temperature)
        for name, value in own.items():
            self.check(name, value)
        usual = self.config.search.model_dump()
        chosen = self.method_settings(method if named is None else named)
        settings = build(SearchSettings, {**usual, **chosen, **own, **budgets}, prefix=f"{OWN}.")
        if settings.method not in UNSCORED and not self.scored:
            known = ", ".join(self.methods())
            raise Refusal(
                400, f"{settings.method} needs a value model, and none is served; there are: {known}", param=OWN
            )
        return settings

    def budgets(self, chat: _Chat, tokens: int | None, own: dict[str, Any]) -> dict[str, Any]:
        """The budgets that are asked for, taken out of the request's own section; the smallest of each kind holds."""
        for name, (setting, _) in BUDGETS.items():
            if setting in own:
                own.setdefault(name, own.pop(setting))
        section = build(_Budgets, {name: own.pop(name) for name in BUDGETS if name in own}, prefix=f"{OWN}.")
        found: dict[str, Any] = {}
        for name, (setting, limit) in BUDGETS.items():
            wanted: dict[str, Any] = {f"{OWN}.{name}": getattr(section, name)}
            if name == "policy_tokens":
                wanted |= {"model": tokens, "max_tokens": chat.max_tokens}
                wanted["max_completion_tokens"] = chat.max_completion_tokens
            wanted = {param: value for param, value in wanted.items() if value is not None}
            most = getattr(self.limits, limit)
            for param, value in wanted.items():
                if value > most:
                    said = f"{param} asks for {value:,} {name.replace('_', ' ')}, and at most {most:,} are given"
                    raise Refusal(400, said, param=param, code="budget_too_large")
            if wanted:
                found[setting] = min(wanted.values())
        return found

    def most(self) -> Budget:
        """What no search may exceed."""
        return Budget(*(getattr(self.limits, limit) for _, limit in BUDGETS.values()))

    def method_settings(self, method: Any) -> dict[str, Any]:
        """What a method or variant of that name sets. Raises ConfigError for one that does not exist."""
        if method is None:
            return {}
        if isinstance(method, str) and method in VARIANTS:
            return dict(VARIANTS[method])
        get_search(str(method)[:100], self.methods())
        return {"method": method}

    def check(self, name: str, value: Any) -> None:
        """Raise Refusal for a setting that would ask too much of the engine at once, and for endless numbers."""
        if isinstance(value, float) and not math.isfinite(value):
            raise Refusal(400, f"{OWN}.{name} is no finite number", param=OWN, code="invalid_setting")
        number = isinstance(value, int | float)
        if name in _WIDTHS and number and value > self.limits.most_samples:
            most = self.limits.most_samples
            raise Refusal(400, f"{OWN}.{name} = {value}: at most {most} are given", param=OWN, code="budget_too_large")
        if name in ("temperature", "rollout_temperature") and number and value > 2:
            raise Refusal(400, f"{OWN}.{name} = {value}: it must be at most 2", param=OWN, code="invalid_setting")


def _flag(own: dict[str, Any], name: str) -> bool:
    value = own.pop(name, None)
    if not isinstance(value, bool | None):
        raise Refusal(400, f"{OWN}.{name} = {str(value)[:50]!r}: it must be true or false", param=OWN)
    return bool(value)


def _parse(body: bytes) -> dict[str, Any]:
    """The body as plain data."""

    def no_number(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    try:
        raw = json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        why = "it nests without end" if isinstance(error, RecursionError) else str(error)[:200]
        raise Refusal(400, f"the body is not JSON: {why}", code="invalid_json") from None
    if not isinstance(raw, dict):
        raise Refusal(400, "the body must be a JSON object with model and messages", code="invalid_json")
    return raw


def _chat(raw: dict[str, Any]) -> _Chat:
    """The parameters, those left out that ask for nothing."""
    for name, neutral in _NEUTRAL.items():
        value = raw.pop(name, None)
        if value is not None and value not in neutral:
            shown = json.dumps(neutral[0])
            raise Refusal(400, f"{name}: a search cannot do that; leave it out, or give {shown}", param=name)
    for name in _PASSED_OVER & raw.keys():
        del raw[name]
    for name in raw:
        if name not in _Chat.model_fields:
            near = get_close_matches(name[:100], (*_Chat.model_fields, *_NEUTRAL), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"settings of the search go into the section {OWN!r}"
            raise Refusal(400, f"unknown parameter {name[:100]!r}; {hint}", param=name[:100], code="unknown_parameter")
    try:
        return _Chat.model_validate(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
        raise Refusal(400, first_problem(error, ""), param=where or None, code="invalid_value") from None
