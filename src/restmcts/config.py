"""Settings of a run: defaults, then a preset, then a YAML file, then flags, then `--set name=value`.

Every error names the setting by its full dotted name, its value, the rule and, for an unknown name, the nearest one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from restmcts.encoding import PromptSettings
from restmcts.engines.settings import EngineSettings
from restmcts.errors import ConfigError
from restmcts.labels import get_rule
from restmcts.search import get_search
from restmcts.search.settings import SearchSettings
from restmcts.settings import Settings
from restmcts.train.settings import PolicyTraining, ValueTraining
from restmcts.types import Budget

S = TypeVar("S", bound=Settings)

_INHERITED = (  # section, its setting, the section it is taken from
    ("warm_start", "policy_training", "policy_training"),
    ("warm_start", "value_training", "value_training"),
    ("evaluate", "search", "search"),
)


class GenerateSettings(Settings):
    """A built-in problem set, made on the spot; train and held-out share no question."""

    name: str = Field(default="demo", description="which set")
    train: int = Field(default=300, ge=1, description="questions to search on")
    heldout: int = Field(default=300, ge=0, description="questions to evaluate on")
    worked: int = Field(default=60, ge=0, description="worked examples to start from (D_S0)")
    seed: int = Field(default=0, ge=0, description="which questions; apart from the run's seed, so that runs compare")


class WarmStart(Settings):
    """What the models learn from the worked examples before the first round."""

    policy: bool = Field(default=True, description="fine-tune the policy on the worked solutions (D_S0)")
    value: bool = Field(default=True, description="train the value model before the first round")
    value_data: Literal["worked", "sampled"] = Field(
        default="worked",
        description="on true and corrupted steps (D_V0), or on these and on solutions that the policy sampled itself",
    )
    corruptions: int = Field(default=3, ge=0, description="wrong turns made from each worked solution for D_V0")
    bootstrap: int = Field(
        default=100,
        ge=1,
        description="questions sampled by the policy to train the first value model, where it is trained on samples",
    )
    policy_training: PolicyTraining = Field(default_factory=PolicyTraining, description="unset: as policy_training")
    value_training: ValueTraining = Field(default_factory=ValueTraining, description="unset: as value_training")


class LabelSettings(Settings):
    """What a verified tree says about its steps (labels.RULES)."""

    rule: str = Field(
        default="rest-mcts",
        description="rest-mcts (process rewards inferred from the tree), orm (the outcome, at the last step), "
        "math-shepherd or omega-prm (from completions that the policy is asked for)",
    )
    unsolved: Literal["zero", "drop"] = Field(
        default="zero", description="trees without a right leaf: every finished branch wrong and worth 0, or no labels"
    )
    estimate: Literal["hard", "soft"] = Field(
        default="hard",
        description="a step is right iff a right answer follows from it, or by the share of right ones (not for orm)",
    )
    completions: int = Field(
        default=8, ge=1, description="completions of a step, for the rules that ask for them (temperature as search)"
    )

    def of_rule(self) -> dict[str, Any]:
        """The settings that change the labels, as manifests hold them: those that the rule reads."""
        read = {"rule", "unsolved", "estimate"}
        read -= {"rest-mcts": {"rule"}, "orm": {"estimate"}}.get(self.rule, set())
        return self.model_dump(mode="json", include=read)


class EvaluateSettings(Settings):
    """What is measured on the held-out questions, after the warm start and after every round."""

    methods: tuple[Literal["greedy", "search"], ...] = Field(
        default=("greedy", "search"), description="greedy answers, answers by search with the value model"
    )
    base: tuple[Literal["greedy", "search"], ...] = Field(
        default=("greedy", "search"),
        description="what is measured of the untrained model; its search is scored by the first value model",
    )
    examples: int = Field(default=3, ge=0, description="worked examples shown to the untrained model (few-shot)")
    search_rounds: Literal["every", "last"] = Field(
        default="every", description="evaluate the search after the warm start and every round, or after the last only"
    )
    limit: int | None = Field(default=None, ge=1, description="use only the first so many held-out questions")
    search: SearchSettings = Field(default_factory=SearchSettings, description="unset: as search")


class CompareSettings(Settings):
    """`restmcts compare`: arms × budgets × seeds on one set of questions."""

    methods: tuple[str, ...] | None = Field(
        default=None,
        description="arms to compare, in this order: names in arms, search methods, or their variants; unset: all of "
        "arms, or where there are none, sample, best_of_n, weighted_vote, mcts_star",
    )
    arms: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="arms with settings of their own over `search`, e.g. {no_rollout: {method: mcts_star, "
        "rollout_steps: 0}}; method: by default what the arm is called",
    )
    budgets: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1, 2, 4, 8, 16), min_length=1, description="most tokens that the policy may generate for a question"
    )
    unit: Literal["answers", "tokens"] = Field(
        default="answers",
        description="what budgets count: answers, the mean tokens of a greedy answer to these questions; or tokens",
    )
    seeds: int = Field(default=3, ge=1, description="how often every question is answered, with seeds from `seed` on")
    baseline: str | None = Field(
        default=None, description="the arm, or greedy, that the others are tested against; unset: all pairs"
    )
    trees: bool = Field(default=False, description="keep the search trees too")


class StageBudget(Settings):
    """Hard limits for each stage that searches, evaluations included; it ends with what was found when one is reached.

    They are no part of a stage's identity: raise them and run the same command again, and the search goes on.
    """

    policy_tokens: int | None = Field(default=None, ge=1, description="policy tokens after which nothing more is asked")
    value_tokens: int | None = Field(default=None, ge=1, description="value tokens after which nothing more is asked")
    seconds: float | None = Field(default=None, gt=0, description="seconds that the stage may take")

    def budget(self) -> Budget:
        """The limits, as `drive` holds them."""
        return Budget(self.policy_tokens, self.value_tokens, self.seconds)


class RunConfig(Settings):
    """Everything a run needs. The commands for single stages use the parts that concern them."""

    policy: str | None = Field(default=None, description="`embedded`, a checkpoint folder, a hub id, or `scripted`")
    value: str | None = Field(default=None, description="first value model; unset: the policy's backbone, a new head")
    problems: str | None = Field(
        default=None, description="questions to search on: a file, a hub data set, or a name such as gsm8k"
    )
    heldout: str | None = Field(default=None, description="questions to evaluate on; unset: no evaluation")
    worked: str | None = Field(default=None, description="worked examples (D_S0); unset: no warm start")
    generate: GenerateSettings | None = Field(default=None, description="a built-in set in place of the three above")
    task: str | None = Field(
        default=None, description="how answers are found and graded; unset: the question set's own, else math"
    )
    fields: dict[str, str] = Field(
        default_factory=dict, description="names in your files, e.g. {question: prompt, answer: target}"
    )
    limit: int | None = Field(default=None, ge=1, description="use only the first so many problems")
    out: Path = Field(default=Path("runs/default"), description="the run folder")
    seed: int = Field(default=0, ge=0)
    rounds: int = Field(default=2, ge=0, description="rounds of search and training; more can be added later")
    questions_per_round: int | None = Field(
        default=None, ge=1, description="questions a round searches, fresh ones each round while there are; unset: all"
    )
    accumulate: bool = Field(
        default=False, description="train on the traces of all rounds so far, not of the last only"
    )
    keep_worked: bool = Field(default=True, description="mix the worked examples into the training rows of every round")
    prompt: PromptSettings = Field(default_factory=PromptSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    stage_budget: StageBudget = Field(default_factory=StageBudget)
    labels: LabelSettings = Field(default_factory=LabelSettings)
    policy_training: PolicyTraining = Field(default_factory=PolicyTraining)
    value_training: ValueTraining = Field(default_factory=ValueTraining)
    warm_start: WarmStart = Field(default_factory=WarmStart)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    compare: CompareSettings = Field(default_factory=CompareSettings)

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, raw: Any) -> Any:
        """Fill the settings that are `unset: as …` from where they come from."""
        if not isinstance(raw, Mapping):
            return raw
        filled = dict(raw)
        for section, name, source in _INHERITED:
            own = _plain(filled.get(section, {}))
            base = _plain(filled.get(source))
            if isinstance(base, Mapping) and isinstance(own, Mapping):
                filled[section] = {**own, name: merged(base, _plain(own.get(name, {})))}
        return filled

    @model_validator(mode="after")
    def _one_source(self) -> RunConfig:
        if self.generate is not None and any((self.problems, self.heldout, self.worked)):
            raise ValueError("give either generate, or problems, heldout and worked, not both")
        return self

    def check_complete(self) -> None:
        """Raise ConfigError unless a whole run can start from these settings."""
        if self.policy is None:
            raise ConfigError("no policy; give --policy: embedded, a checkpoint folder or a hub id")
        if self.problems is None and self.generate is None:
            raise ConfigError("no problems; give --problems (a file or a hub data set), or --preset demo")


# ---------------------------------------------------------------- loading


def load_config(
    path: str | Path | None = None,
    *,
    preset: str | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """The settings of a run. `flags` are top-level settings (None: not given); `overrides` are `dotted.name=value`.

    Raises ConfigError for an unreadable file, an unknown setting, or a value out of range.
    """
    raw = {} if path is None else read_yaml(Path(path))
    named = raw.pop("preset", None)
    check_names(RunConfig, raw, where=f" in {path}")
    preset = preset or named
    if preset is not None:
        raw = merged(read_preset(preset), raw)
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    if given.keys() & {"problems", "heldout", "worked"}:
        raw.pop("generate", None)  # the user's own questions take the place of the built-in set
    raw = merged(raw, given)
    for override in overrides:
        raw = merged(raw, _parse_override(override))
    config = build(RunConfig, raw)
    for settings in (config.search, config.evaluate.search):
        get_search(settings.method)
    get_rule(config.labels.rule)
    return config


def build(model: type[S], raw: Mapping[str, Any], *, prefix: str = "") -> S:
    """`raw` as settings of class `model`. Raises ConfigError naming the first thing that is wrong, on one line."""
    check_names(model, raw, prefix=prefix)
    try:
        return model.model_validate(dict(raw))
    except ValidationError as error:
        raise ConfigError(_first_problem(error, prefix)) from None


def check_names(model: type[BaseModel], raw: Mapping[str, Any], *, prefix: str = "", where: str = "") -> None:
    """Raise ConfigError for the first name in `raw` that is no setting, with the nearest that is."""
    for name, section in _unknown(model, raw, prefix):
        raise ConfigError(f"unknown setting {name!r}{where}; {_nearest(name, section, model, prefix)}")


def dump_yaml(settings: Settings) -> str:
    """Settings as YAML that `load_config` reads back to the same."""
    return str(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120))


def presets() -> list[str]:
    """Names of the built-in presets."""
    folder = resources.files("restmcts") / "presets"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """A built-in preset as plain data. Raises ConfigError when there is none of that name."""
    if name not in presets():
        near = get_close_matches(str(name), presets(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(presets())}"
        raise ConfigError(f"unknown preset {name!r}; {hint}")
    return _parse_yaml((resources.files("restmcts") / "presets" / f"{name}.yaml").read_text("utf-8"), f"preset {name}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of settings as plain data. Raises ConfigError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no such config file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read config {path}: {reason}") from None
    return _parse_yaml(text, str(path))


def merged(base: Any, over: Any) -> Any:
    """`over` on top of `base`: mappings merge name by name, everything else is replaced."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    return {**base, **{name: merged(base.get(name), value) for name, value in over.items()}}


class _Loader(yaml.SafeLoader):
    """YAML in which a name given twice is an error, not a silent choice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = key.value
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", key.start_mark)
            seen.add(name)
        return dict(super().construct_mapping(node, deep=deep))


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        raw = yaml.load(text, Loader=_Loader)  # a SafeLoader underneath
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{source}{line}: not YAML ({getattr(error, 'problem', None) or 'unreadable'})") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: settings must be names with values, e.g. `rounds: 2`, not a {type(raw).__name__}")
    return raw


def _parse_override(text: str) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r} is not name=value; for example --set search.iterations=40")
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: the value is not YAML; put quotes around it") from None
    for part in reversed(name.strip().split(".")):
        parsed = {part: parsed}
    return dict(parsed)


# ---------------------------------------------------------------- errors a person can act on


def _section(annotation: Any) -> type[BaseModel] | None:
    """The settings class behind a field's annotation, `X | None` included."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _unknown(model: type[BaseModel], raw: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, value in raw.items():
        if name not in model.model_fields:
            yield f"{prefix}{name}", model
        elif (section := _section(model.model_fields[name].annotation)) and isinstance(value, Mapping):
            yield from _unknown(section, value, f"{prefix}{name}.")


def _names(model: type[BaseModel], prefix: str) -> Iterable[str]:
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        if section := _section(info.annotation):
            yield from _names(section, f"{prefix}{name}.")


def _nearest(name: str, section: type[BaseModel], model: type[BaseModel], prefix: str) -> str:
    """Where the name was probably meant to point: in its own section, else anywhere."""
    parent, _, leaf = name.rpartition(".")
    own = get_close_matches(leaf, list(section.model_fields), n=1, cutoff=0.7)
    if own:
        return f"did you mean {(f'{parent}.' if parent else '') + own[0]!r}?"
    everywhere = {full.rpartition(".")[2]: full for full in reversed(list(_names(model, prefix)))}
    near = get_close_matches(leaf, list(everywhere), n=1, cutoff=0.7)
    if near:
        return f"did you mean {everywhere[near[0]]!r}?"
    return f"the settings {f'of {parent} ' if parent else ''}are: {', '.join(section.model_fields)}"


def _first_problem(error: ValidationError, prefix: str) -> str:
    first = error.errors(include_url=False)[0]
    name = prefix + ".".join(str(part) for part in first["loc"])
    rule = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    if first["type"] == "missing":
        return f"setting {name!r} is missing"
    if first["type"] in ("model_type", "model_attributes_type", "dict_type"):
        rule = "it must be a section, e.g. `search: {iterations: 40}`"
    return f"{name} = {first['input']!r}: {rule[:1].lower()}{rule[1:]}" if first["loc"] else rule


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
