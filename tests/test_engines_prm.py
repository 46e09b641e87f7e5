"""Public process reward models, random and tiny: each value is that of the right token, as their makers read it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer, Qwen2Model  # noqa: E402

from restmcts import SearchSettings, models, solve  # noqa: E402
from restmcts.encoding import PromptSettings, steps_of  # noqa: E402
from restmcts.engines import Engines  # noqa: E402
from restmcts.engines.kv import Rows  # noqa: E402
from restmcts.engines.opening import load_value as open_value  # noqa: E402
from restmcts.engines.scripted import load_scripted  # noqa: E402
from restmcts.engines.settings import EngineSettings  # noqa: E402
from restmcts.engines.transformers import load_value  # noqa: E402
from restmcts.errors import EngineError, FixedModelError  # noqa: E402
from restmcts.rows import ValueRow  # noqa: E402
from restmcts.train.settings import ValueTraining  # noqa: E402
from restmcts.train.value import train_value  # noqa: E402
from restmcts.types import Path as Steps  # noqa: E402
from restmcts.types import Problem, Score, Scores, Step  # noqa: E402
from tests.tiny import tiny_prm  # noqa: E402

PROBLEM = Problem("p", "What is 3 + 4 - 2? ки + - 2024")
PATH = steps_of("3 + 4 = 7 ки\n7 - 2 = 5\nAnswer: 5 +")
SETTINGS = EngineSettings(dtype="float32", device="cpu")
TEXTS = [step.text for step in PATH]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=models.PRM_STYLES)
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(style: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prm(tmp_path_factory.mktemp(style), style)


def named(style: str, folder: Path) -> str:
    """Two families are known by their config, the others must be named."""
    return str(folder) if style in ("qwen", "trl") else f"{style}:{folder}"


def score(spec: str, *paths: Steps, problem: Problem = PROBLEM) -> Scores:
    async def ask() -> Scores:
        engine = load_value(spec, PromptSettings(), SETTINGS)
        try:
            return await engine.score(Score(problem, paths))
        finally:
            await engine.close()

    return asyncio.run(ask())


# ---------------------------------------------------------------- what the makers' own instructions give


def as_published(style: str, folder: Path) -> list[float]:
    """The value of every step by the recipe of the model's card, on one plain forward pass."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return {"qwen": qwen, "math-shepherd": math_shepherd, "rlhflow": rlhflow, "trl": trl}[style](folder, tokenizer)


def qwen(folder: Path, tokenizer) -> list[float]:
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    turns = [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": PROBLEM.question},
        {"role": "assistant", "content": "<extra_0>".join(TEXTS) + "<extra_0>"},
    ]
    ids = torch.tensor([tokenizer.encode(tokenizer.apply_chat_template(turns, tokenize=False))])
    hidden = Qwen2Model.from_pretrained(folder)(ids).last_hidden_state
    inner = torch.relu(hidden @ weights["score.0.weight"].T + weights["score.0.bias"])
    logits = inner @ weights["score.2.weight"].T + weights["score.2.bias"]
    separator = tokenizer.encode("<extra_0>")[0]
    return logits.softmax(-1)[ids == separator][:, 1].tolist()


def math_shepherd(folder: Path, tokenizer) -> list[float]:
    """Its recipe looks for the tag anywhere; here question and steps hold it too, so only those after steps count."""
    text = PROBLEM.question + " " + "\n".join(f"Step {k}: {step} ки" for k, step in enumerate(TEXTS, start=1))
    ids = torch.tensor([tokenizer.encode(text)])
    plus, minus = tokenizer.encode("+ -")[1:]
    tag = tokenizer.encode("ки")[-1]
    assert ids[0, 0] == tokenizer.bos_token_id
    logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits[:, :, [plus, minus]]
    values = logits.softmax(-1)[:, :, 0][ids == tag].tolist()
    assert len(values) == 5
    return values[2:]


def rlhflow(folder: Path, tokenizer) -> list[float]:
    """One forward pass a step, the sign being the last but one token of the conversation so far."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    signs = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]
    turns, values = [], []
    for k, step in enumerate(TEXTS):
        turns.append({"role": "user", "content": f"{PROBLEM.question} {step}" if k == 0 else step})
        turns.append({"role": "assistant", "content": "+"})
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        assert ids[0, -2] == signs[0]
        values.append(float(model(ids).logits[0, -3, signs].softmax(-1)[0]))
    return values


def trl(folder: Path, tokenizer) -> list[float]:
    """The label of the last token, a separator, of the text so far."""
    model = AutoModelForTokenClassification.from_pretrained(folder)
    values = []
    for k in range(1, len(TEXTS) + 1):
        ids = tokenizer("\n".join([PROBLEM.question, *TEXTS[:k]]) + "\n", return_tensors="pt")["input_ids"]
        values.append(float(model(ids).logits[0, -1].softmax(-1)[1]))
    return values


def test_values_are_those_of_the_published_recipe(style: str, folder: Path) -> None:
    expected = as_published(style, folder)
    assert len(set(expected)) == len(PATH), "values that differ, or nothing is shown"
    prefixes = [PATH[:k] for k in range(1, len(PATH) + 1)]
    got = score(named(style, folder), *prefixes)
    assert got.values == pytest.approx(expected, abs=1e-5)
    for prefix, value in zip(prefixes, expected, strict=True):
        assert score(named(style, folder), prefix).values == pytest.approx([value], abs=1e-5)


def test_a_neighbouring_token_says_something_else(style: str, folder: Path) -> None:
    """What is compared above would show a value read one token too early or too late."""
    engine = load_value(named(style, folder), PromptSettings(), SETTINGS)
    trace = engine.encoder.trace(PROBLEM, PATH)
    rows = engine._prefixes._rows
    rows.append()
    with torch.inference_mode():
        values = engine._read(rows.states(0, [trace.ids])[0]).tolist()
    asyncio.run(engine.close())
    expected = as_published(style, folder)
    assert [values[end] for end in trace.ends] == pytest.approx(expected, abs=1e-5)
    for shift in (-1, 1):
        others = [values[end + shift] for end in trace.ends if end + shift < len(values)]
        assert all(abs(a - b) > 1e-4 for a, b in zip(others, expected, strict=False))


def test_all_steps_of_a_path_cost_one_forward_pass(style: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    states = Rows.states
    monkeypatch.setattr(
        Rows, "states", lambda self, first, new: computed.append([len(ids) for ids in new]) or states(self, first, new)
    )
    prefixes = [PATH[:k] for k in range(1, len(PATH) + 1)]
    got = score(named(style, folder), *prefixes)
    assert len(computed) == 1
    assert len(computed[0]) == 1
    assert got.usage.value_tokens == computed[0][0]


def test_a_path_does_not_depend_on_others_beside_it(style: str, folder: Path) -> None:
    other = (PATH[0], Step("7 - 2 = 4"), Step("Answer: 4"))
    paths = [PATH[:2], other, PATH, other[:2], other, PATH[:1], (Step("Step 1: 5"),)]
    together = score(named(style, folder), *paths).values
    alone = [score(named(style, folder), path).values[0] for path in paths]
    assert together == pytest.approx(alone, abs=1e-5)


def test_step_ids_of_another_tokenizer_do_not_matter(style: str, folder: Path) -> None:
    foreign = tuple(Step(step.text, (1, 2, 3)) for step in PATH)
    assert score(named(style, folder), foreign).values == score(named(style, folder), PATH).values


# ---------------------------------------------------------------- which family it is


def test_the_family_is_found_or_asked_for(style: str, folder: Path) -> None:
    known = style in ("qwen", "trl")
    assert models.prm_style(folder) == (style if known else None)
    assert models.prm_style(f"{style}:{folder}") == style
    assert models.is_value_model(named(style, folder))
    if not known:
        with pytest.raises(EngineError, match=rf"language model, not a value model.*math-shepherd:.*rlhflow:{folder}"):
            load_value(folder, PromptSettings(), SETTINGS)
    engine = open_value(f"{style}:{folder}", PromptSettings(), SETTINGS)
    assert engine.identity.startswith(f"{style}:{folder.name}@")
    assert engine.tokenizer_id is None
    asyncio.run(engine.close())


def test_code_in_the_checkpoint_is_never_run(tmp_path: Path) -> None:
    folder = tiny_prm(tmp_path / "prm", "qwen")
    trap = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit('remote code was run')\n"
    for name in ("configuration_qwen2_rm.py", "modeling_qwen2_rm.py"):
        (folder / name).write_text(trap)
    assert len(score(str(folder), PATH).values) == 1
    assert not (tmp_path / "ran").exists()


def test_other_weights_than_the_family_has_are_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(EngineError, match=r"no StepClassifier: its weights lack"):
        load_value(f"qwen:{tiny_model_dir}", PromptSettings(), SETTINGS)
    folder = tiny_prm(tmp_path / "rlhflow", "rlhflow")
    (folder / "chat_template.jinja").unlink()
    engine = load_value(f"rlhflow:{folder}", PromptSettings(), SETTINGS)
    with pytest.raises(EngineError, match="no chat template"):
        engine.encoder.trace(PROBLEM, PATH)
    asyncio.run(engine.close())


def test_a_public_model_guides_a_search_and_is_not_trained(style: str, folder: Path, tmp_path: Path) -> None:
    engines = Engines(load_scripted()[0], load_value(named(style, folder), PromptSettings(), SETTINGS))
    tree = solve(Problem("q", "What is 2 + 3 * 4?"), engines, SearchSettings(iterations=4, threshold=2), seed=1)
    asyncio.run(engines.close())
    assert not tree.failures
    values = [value for value, status in zip(tree.raw_value[1:], tree.status[1:], strict=True) if status != "dead"]
    assert len(values) > 4
    assert len(set(values)) > 4
    row = ValueRow("p", PROBLEM.question, TEXTS, [None] * 3, None, labels=[0.3, 0.6, 1.0], r=[0.0] * 3)
    with pytest.raises(FixedModelError, match="is not trained here"):
        train_value(
            [row], base=named(style, folder), out=tmp_path, prompt=PromptSettings(), settings=ValueTraining(epochs=1)
        )


def test_the_published_config_is_what_the_test_builds(tmp_path: Path) -> None:
    config = json.loads((tiny_prm(tmp_path, "qwen") / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForProcessRewardModel"]
    assert "auto_map" in config
