"""Model cards: README.md in every folder of a trained model, with the front matter that the hub reads.

A card is written when training ends and again when a run ends, for only then is it known how good the model is. It is
made of what lies on the disk and is no part of what a stage made (`manifest.CARD`): writing it changes no fingerprint.
Only names of files and folders go into it, never where they lie.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from restmcts.encoding import PromptSettings, chat_turns, plain_prompt, shown_examples
from restmcts.errors import RestmctsError
from restmcts.files import read_json, write_atomic
from restmcts.findings import value_table
from restmcts.manifest import CARD, MANIFEST, Manifest
from restmcts.models import EMBEDDED, EMBEDDED_HUB, named_style, read_prompt
from restmcts.results import BASE, METRICS, MODES, RunResults, accuracy, load_run, phase_name
from restmcts.tables import Table, count, number, percent, with_interval
from restmcts.tasks.sets import find_set
from restmcts.types import Problem

MARK = "<!-- written by restmcts; a card without this line is left as it is -->"
_ROUND = re.compile(r"round-(\d+)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LICENCES = {EMBEDDED_HUB: "apache-2.0"}


@dataclass(slots=True)
class Facts:
    """What is known of a trained model."""

    folder: Path
    manifest: Manifest
    is_value: bool
    prompt: PromptSettings
    name: str
    run: RunResults | None = None
    round: int | None = None
    base: str = ""
    """the model that all training began with: a hub id, or the name of a folder"""
    licence: str | None = None
    datasets: list[str] = field(default_factory=list)
    """hub data sets that it was trained on"""

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.run.settings if self.run is not None else {}

    @property
    def hub_base(self) -> str | None:
        return self.base if _HUB_ID.fullmatch(self.base) else None


def write_card(folder: Path) -> Path | None:
    """Write or renew the card of a model's folder; None where there is no model, or a card that is somebody's own.

    Raises StoreError when it cannot be written.
    """
    path = folder / CARD
    text = card(folder)
    if text is None:
        return None
    old = path.read_text("utf-8", errors="replace") if path.is_file() else None
    if old is not None and MARK not in old:
        return None
    if text != old:
        write_atomic(path, text)
    return path


def card(folder: Path, name: str | None = None, licence: str | None = None) -> str | None:
    """The card of the model in a folder, called `name`; None where the folder holds no model that restmcts trained.

    `licence` is that of the base, where this machine does not know it.
    """
    facts = facts_of(folder, name)
    if facts is None:
        return None
    facts.licence = facts.licence or licence
    try:
        return _written(facts)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        facts.run = None  # its results are damaged, which is a matter of the report
        return _written(facts)


def _written(facts: Facts) -> str:
    head = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True, width=120)
    parts = [_title(facts), _made(facts), _quality(facts), _use(facts), _settings(facts)]
    return f"---\n{head}---\n\n{MARK}\n\n" + "\n".join(parts)


# ---------------------------------------------------------------- what is known


def facts_of(folder: Path, name: str | None = None) -> Facts | None:
    """What lies on the disk about the model in a folder; None where there is none with a manifest."""
    if not (folder / MANIFEST).is_file() or not (folder / "config.json").is_file():
        return None
    manifest, config = Manifest.read(folder / MANIFEST), read_json(folder / "config.json")
    kinds = config.get("architectures") if isinstance(config, dict) else None
    is_value = any(str(kind).endswith("ForTokenClassification") for kind in kinds or [])
    prompt = read_prompt(folder) or PromptSettings()
    facts = Facts(folder, manifest, is_value, prompt, name or _called(folder))
    facts.round, out = _place(folder.resolve())
    if facts.round is not None and (out / METRICS).is_file():
        with suppress(RestmctsError):
            facts.run = load_run(out)
    facts.base, facts.licence = _origin(folder.resolve())
    facts.datasets = _datasets(facts.settings)
    return facts


def _place(folder: Path) -> tuple[int | None, Path]:
    """The round of a run that a stage's folder belongs to, and the run's folder; of a stage done alone, its own."""
    number = _ROUND.fullmatch(folder.parent.name)
    return (None, folder) if number is None else (int(number[1]), folder.parents[1])


def _called(folder: Path) -> str:
    folder = folder.resolve()
    number, out = _place(folder)
    return folder.name if number is None else f"{out.name}-{folder.parent.name}-{folder.name}"


def _origin(folder: Path) -> tuple[str, str | None]:
    """The model that training began with, through all rounds, and its licence, where it is known."""
    seen: set[Path] = set()
    while folder not in seen and (folder / MANIFEST).is_file():
        seen.add(folder)
        manifest = Manifest.read(folder / MANIFEST)
        given = manifest.inputs.get("base", {}).get("path") or manifest.settings.get("base")
        if not isinstance(given, str):
            return "", None
        spec = named_style(given)[1]
        folder = (_place(folder)[1] / spec).resolve()
        if not folder.is_dir():
            hub = EMBEDDED_HUB if spec == EMBEDDED else spec if _HUB_ID.fullmatch(spec) else Path(spec).name
            return hub, _LICENCES.get(hub) or _head(_cached_card(hub)).get("license")
    head = _head(folder / CARD)
    known = head.get("base_model")
    return (known if isinstance(known, str) else folder.name), head.get("license")


def _cached_card(hub: str) -> Path | None:
    """The card of a hub model, where the hub's library has it on this machine."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(hub, CARD)
    except (ImportError, ValueError, OSError):  # the library raises ValueErrors for what is no name of a model
        return None
    return Path(found) if isinstance(found, str) else None


def _head(path: Path | None) -> dict[str, Any]:
    """The front matter of a card; empty where there is none that can be read."""
    try:
        text = "" if path is None else path.read_text("utf-8")
        found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        head = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return {k: v for k, v in head.items() if isinstance(v, str)} if isinstance(head, dict) else {}


def _datasets(settings: Mapping[str, Any]) -> list[str]:
    """The hub data sets among a run's sources of questions that it trained on."""
    return list(dict.fromkeys(hub for key in ("worked", "problems") if (hub := _hub_set(settings.get(key)))))


def _hub_set(source: Any) -> str | None:
    if not isinstance(source, str) or Path(source).exists():
        return None
    known = find_set(source)
    if known is not None:
        return known.set.hub
    plain = re.split("[:@]", source)[0]
    return plain if _HUB_ID.fullmatch(plain) and not Path(plain).suffix else None


# ---------------------------------------------------------------- the front matter


def front_matter(facts: Facts) -> dict[str, Any]:
    """What the hub reads of a card."""
    head: dict[str, Any] = {}
    if facts.licence:
        head["license"] = facts.licence
    if facts.hub_base:
        head |= {"base_model": facts.hub_base, "base_model_relation": "finetune"}
    head["library_name"] = "transformers"
    head["pipeline_tag"] = "token-classification" if facts.is_value else "text-generation"
    if facts.datasets:
        head["datasets"] = facts.datasets
    head["tags"] = ["restmcts", "rest-mcts", *(["process-reward-model", "value-model"] if facts.is_value else [])]
    results = [] if facts.is_value else _results(facts)
    if results:
        head["model-index"] = [{"name": facts.name, "results": results}]
    return head


def _results(facts: Facts) -> list[dict[str, Any]]:
    found = []
    for mode in MODES:
        measured = _accuracy(facts, facts.round, mode)
        if measured is not None:
            metric = {"type": "accuracy", "name": f"accuracy, {mode}", "value": round(100 * measured[0], 2)}
            data = {"name": _shown(facts.settings.get("heldout")), "type": _hub_set(facts.settings.get("heldout"))}
            data["type"] = data["type"] or "held-out"
            found.append({"task": {"type": "text-generation"}, "dataset": data, "metrics": [metric]})
    return found


def _accuracy(facts: Facts, phase: int | None, mode: str) -> Any:
    if facts.run is None or phase is None:
        return None
    return accuracy([facts.run], phase, mode)


def _shown(source: Any) -> str:
    """What questions are called: a file by its name alone."""
    if not isinstance(source, str):
        return "held-out questions"
    return Path(source).name if Path(source).exists() or Path(source).suffix else source


# ---------------------------------------------------------------- the text


def _title(facts: Facts) -> str:
    what = "A value model (process reward model)" if facts.is_value else "A policy"
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.hub_base else f"`{facts.base or 'a model'}`"
    method = facts.settings.get("method", "rest-mcts")
    by = "" if facts.run is None else f" by self-training with the method `{method}`"
    after = {None: "", 0: ", at the warm start"}.get(facts.round, f", in round {facts.round}")
    says = (
        "It says of a partial solution, in [0, 1], how far along and how likely right it is."
        if facts.is_value
        else "It writes one step of a solution a line."
    )
    return f"# {facts.name}\n\n{what}, trained from {base}{by}{after}. {says}\n"


def _made(facts: Facts) -> str:
    metrics, settings = facts.manifest.metrics, facts.settings
    rows = [["trained on", f"{count(metrics['rows'])} rows"]] if isinstance(metrics.get("rows"), int) else []
    if facts.run is not None:
        generated = settings.get("generate")
        name = generated.get("name") if isinstance(generated, dict) else None
        rows.append(["questions", f"built-in set {name}" if name else _shown(settings.get("problems"))])
        if settings.get("worked"):
            rows.append(["worked examples", _shown(settings["worked"])])
        labels = settings.get("labels")
        if isinstance(labels, dict):
            rows.append(["labels", f"{labels.get('rule')}, {labels.get('source')}"])
        rows.append(["rounds", f"{facts.round} of {settings.get('rounds')}"])
    losses = [metrics.get("loss_first"), metrics.get("loss_last")]
    if all(isinstance(loss, int | float) for loss in losses):
        rows.append(["loss, at first and at last", f"{losses[0]:.3f}, {losses[1]:.3f}"])
    versions = [
        f"{k} {facts.manifest.versions[k]}"
        for k in ("restmcts", "torch", "transformers", "peft", "trl")
        if k in facts.manifest.versions
    ]
    rows.append(["made with", ", ".join(versions)])
    return Table("How it was made", ["", ""], rows, words=True).markdown()


def _quality(facts: Facts) -> str:
    table = Table("Quality", ["held-out accuracy", *MODES])
    for phase in dict.fromkeys([BASE, facts.round] if facts.run is not None else []):
        found = [_accuracy(facts, phase, mode) for mode in MODES]
        if phase is not None and any(found):
            table.rows.append([phase_name(phase), *(with_interval(f[0], f[1]) if f else "–" for f in found)])
            sizes = {f[2] for f in found if f}
            note = f"On {', '.join(map(str, sorted(sizes)))} questions of {_shown(facts.settings.get('heldout'))}, "
            table.notes = [note + "with 95 % intervals. Search uses the run's value model."]
    parts = [table.markdown()] if table.rows else []
    metrics = facts.manifest.metrics
    if facts.is_value and facts.run is not None:
        own = value_table([facts.run])
        own.rows = [row for row in own.rows if facts.round is not None and row[0] == phase_name(facts.round)]
        parts += [own.markdown()] if own.rows else []
    if facts.is_value and metrics.get("validation_steps"):
        parts.append(
            f"On {count(metrics['validation_steps'])} steps kept out of training: mean squared error "
            f"{number(metrics.get('validation_mse'))}, within 0.1 of the label "
            f"{percent(metrics.get('validation_within_0.1'))}.\n"
        )
    return "\n".join(parts) or "## Quality\n\nNot measured.\n"


def _use(facts: Facts) -> str:
    prompt, problem = facts.prompt, Problem("", "What is 2 + 3?")
    shown = shown_examples(prompt, ())
    asked = f"text = {plain_prompt(prompt, shown, problem)!r}"
    if prompt.chat:
        turns = "\n".join(f"    {turn!r}," for turn in chat_turns(prompt, shown, problem))
        render = "tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)"
        asked = f"messages = [\n{turns}\n]\ntext = {render}"
    special = "" if not prompt.chat else ", add_special_tokens=False"
    kind = "AutoModelForTokenClassification" if facts.is_value else "AutoModelForCausalLM"
    code = [
        *(["import torch"] if facts.is_value else []),
        f"from transformers import {kind}, AutoTokenizer",
        "",
        f"name = {facts.name!r}",
        f"model, tokenizer = {kind}.from_pretrained(name), AutoTokenizer.from_pretrained(name)",
        asked,
    ]
    if facts.is_value:
        code += [
            f"inputs = tokenizer(text + '2 + 3 = 5' + {prompt.delimiter!r}, return_tensors='pt'{special})",
            "with torch.inference_mode():",
            "    value = model(**inputs).logits[0, -1, 0].sigmoid()  # at the last token of each step",
        ]
    else:
        code += [
            f"inputs = tokenizer(text, return_tensors='pt'{special})",
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))",
        ]
    flag = "--policy MODEL --value" if facts.is_value else "--policy"
    ours = f"restmcts solve 'What is 2 + 3?' {flag} {shlex.quote(facts.name)}"
    return "## How to load it\n\n```python\n" + "\n".join(code) + f"\n```\n\n```bash\n{ours}\n```\n"


def _settings(facts: Facts) -> str:
    settings = facts.manifest.settings
    chosen = {k: v for k, v in settings.items() if k == "training" or k.endswith("_training")}
    chosen |= {k: settings[k] for k in ("seed",) if k in settings}
    if isinstance(search := facts.settings.get("search"), dict):
        chosen["search"] = search
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True, width=120)
    return f"## Settings\n\n```yaml\n{text}```\n"
