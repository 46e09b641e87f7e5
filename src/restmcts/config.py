"""Settings of a run: defaults, then a preset, then a YAML file, then flags, then `--set name=value`.

Every error names the setting by its full dotted name, its value, the rule and, for an unknown name, the nearest one.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from restmcts.encoding import PromptSettings
from restmcts.engines.settings import EngineSettings
from restmcts.errors import ConfigError
from restmcts.labels import get_rule
from restmcts.search import get_search
from restmcts.search.settings import SearchSettings
from restmcts.sections import (
    METHOD_DEFAULTS,
    ClusterSettings,
    CompareSettings,
    Curriculum,
    EvaluateSettings,
    GenerateSettings,
    JudgeSettings,
    LabelSettings,
    MethodName,
    ServeSettings,
    StageBudget,
    WarmStart,
)
from restmcts.settings import Settings
from restmcts.trackers import read_names
from restmcts.train.settings import OnlineTraining, PolicyTraining, PreferenceTraining, ValueTraining

S = TypeVar("S", bound=Settings)

_INHERITED = (  # section, its setting, the section it is taken from
    ("warm_start", "policy_training", "policy_training"),
    ("warm_start", "value_training", "value_training"),
    ("evaluate", "search", "search"),
)


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
    report_to: tuple[str, ...] = Field(
        default=(),
        description="trackers that get the numbers of trainings and stages: tensorboard, wandb, trackio, mlflow",
    )
    method: MethodName = Field(
        default="rest-mcts", description="how the policy learns from its own solutions (restmcts.methods)"
    )
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
    preference: PreferenceTraining = Field(default_factory=PreferenceTraining)
    online: OnlineTraining = Field(default_factory=OnlineTraining)
    judge: JudgeSettings = Field(default_factory=JudgeSettings)
    curriculum: Curriculum = Field(default_factory=Curriculum)
    warm_start: WarmStart = Field(default_factory=WarmStart)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    compare: CompareSettings = Field(default_factory=CompareSettings)
    serve: ServeSettings = Field(default_factory=ServeSettings)
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)

    @field_validator("report_to", mode="before")
    @classmethod
    def _trackers(cls, given: Any) -> Any:
        return read_names(given)

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, raw: Any) -> Any:
        """Fill what a method sets by itself, and the settings that are `unset: as …` from where they come from."""
        if not isinstance(raw, Mapping):
            return raw
        filled = dict(raw)
        for section, own in METHOD_DEFAULTS.get(str(filled.get("method")), {}).items():
            filled[section] = merged(own, _plain(filled.get(section, {})))
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

    def prompting(self) -> dict[str, Any]:
        """How questions are put to models, as manifests hold it: what of that changes the answers."""
        changing = {"ask", "tokenizer", "judge_tokens"}
        server = self.engine.server.model_dump(mode="json", include=changing, exclude_defaults=True)
        return {"prompt": self.prompt.model_dump(mode="json"), **({"server": server} if server else {})}

    def check_complete(self) -> None:
        """Raise ConfigError unless a whole run can start from these settings."""
        if self.policy is None:
            raise ConfigError("no policy; give --policy: embedded, a checkpoint folder or a hub id")
        if self.problems is None and self.generate is None:
            raise ConfigError("no problems; give --problems (a file or a hub data set), or --preset demo")
        if self.labels.source != "oracle" and self.labels.rule not in ("rest-mcts", "orm"):
            raise ConfigError(
                f"labels.rule = {self.labels.rule!r} grades completions by the known answers; "
                f"with labels.source = {self.labels.source!r} use rest-mcts or orm"
            )
        if self.method == "online" and self.labels.source == "judge":
            raise ConfigError("labels.source = 'judge': the method online takes oracle or majority")
        if self.curriculum.patience is not None and self.heldout is None and self.generate is None:
            raise ConfigError("curriculum.patience needs held-out questions; give --heldout")


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
        raise ConfigError(first_problem(error, prefix)) from None


def check_names(model: type[BaseModel], raw: Mapping[str, Any], *, prefix: str = "", where: str = "") -> None:
    """Raise ConfigError for the first name in `raw` that is no setting, with the nearest that is."""
    for name, section in _unknown(model, raw, prefix):
        raise ConfigError(f"unknown setting {name!r}{where}; {_nearest(name[:200], section, model, prefix)}")


def dump_yaml(settings: Settings) -> str:
    """Settings as YAML that `load_config` reads back to the same."""
    return str(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120))


def presets() -> list[str]:
    """Names of the built-in presets."""
    folder = resources.files("restmcts") / "presets"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """A built-in preset as plain data, over the one it names itself. Raises ConfigError when there is none."""
    if name not in presets():
        near = get_close_matches(str(name), presets(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(presets())}"
        raise ConfigError(f"unknown preset {name!r}; {hint}")
    raw = _parse_yaml((resources.files("restmcts") / "presets" / f"{name}.yaml").read_text("utf-8"), f"preset {name}")
    below = raw.pop("preset", None)
    return raw if below is None else merged(read_preset(below), raw)


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
            if not isinstance(name, str):
                raise yaml.constructor.ConstructorError(None, None, "a name must be text", key.start_mark)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", key.start_mark)
            seen.add(name)
        return dict(super().construct_mapping(node, deep=deep))


UNREADABLE = (ValueError, TypeError, RecursionError, OverflowError)
"""what the YAML library raises beside its own errors: for dates that are none, endless numbers, nesting without end"""


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        raw = yaml.load(text, Loader=_Loader)  # a SafeLoader underneath
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{source}{line}: not YAML ({getattr(error, 'problem', None) or 'unreadable'})") from None
    except UNREADABLE as error:
        raise ConfigError(f"{source}: YAML that cannot be read ({str(error)[:100]}); mend it") from None
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
    except (yaml.YAMLError, *UNREADABLE):
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


def first_problem(error: ValidationError, prefix: str) -> str:
    """The first thing that is wrong, on one line: name, value, rule."""
    first = error.errors(include_url=False)[0]
    name = prefix + ".".join(str(part) for part in first["loc"])
    rule = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    if first["type"] == "missing":
        return f"setting {name!r} is missing"
    if first["type"] in ("model_type", "model_attributes_type", "dict_type"):
        rule = "it must be a section, e.g. `search: {iterations: 40}`"
    # In a few words whatever it is: with YAML's aliases a few lines may stand for gigabytes.
    return f"{name} = {_REPR.repr(first['input'])}: {rule[:1].lower()}{rule[1:]}" if first["loc"] else rule


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 100


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
