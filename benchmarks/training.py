"""How fast both trainings are, packed and not, and how near the machine's bare matrix rate. With the embedded model.

Every figure is of LoRA gradients alone, one forward and one backward pass of the same traces with the same operations;
what differs is how the traces are laid out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Figure, timed
from restmcts.encoding import Encoder, PromptSettings
from restmcts.tasks import get_task
from restmcts.tasks.generate import generate
from restmcts.trackers import Tracking
from restmcts.worked import worked_policy_rows, worked_value_rows

QUESTIONS, GPU_QUESTIONS = 24, 480
WRONG_TURNS = 5
"""of each question, beside its right trace: the demo preset trains on six traces of a question"""

AIM = 5.0
TOKENS_OF_A_PASS, GPU_TOKENS_OF_A_PASS = 768, 16384
"""of the padded ways; they are no faster with more"""


def run() -> list[Figure]:
    import torch

    from restmcts.models import embedded_model, load_causal, load_token_classifier, load_tokenizer
    from restmcts.train import policy, value
    from restmcts.train.packing import IGNORED, Example

    base = embedded_model()
    encoder = Encoder(load_tokenizer(base), PromptSettings(instruction="Solve step by step."))
    questions = QUESTIONS if device() == "cpu" else GPU_QUESTIONS
    worked = generate("demo", train=1, heldout=0, worked=questions, seed=0).worked
    find_answer = get_task(worked[0].task).find_answer
    rows = worked_value_rows(worked, corruptions=WRONG_TURNS, seed=0, find_answer=find_answer)
    with tempfile.TemporaryDirectory() as folder:
        make = partial(_trainer, Path(folder))

        examples = [value.encode(row, encoder, 1024) for row in rows]
        trainer = make("value", load_token_classifier(base), examples, [row.question for row in rows])
        prefixes = {tuple(e.ids[: i + 1]): v for e in examples for i, v in enumerate(e.labels) if v != IGNORED}
        nodes, rate = len(prefixes), _packed(trainer)
        found, computed = nodes / rate[0], rate[1] / rate[0]
        by_trace = nodes / _padded(trainer, examples)
        by_prefix = nodes / _padded(
            trainer, [Example(list(ids), [IGNORED] * (len(ids) - 1) + [v]) for ids, v in prefixes.items()]
        )

        solutions = [
            policy.encode(row, encoder) for p in worked for row in worked_policy_rows([p], get_task(p.task).find_answer)
        ]
        trainer = make("policy", load_causal(base), solutions, [problem.question for problem in worked])
        packed, padded = _packed(trainer)[0], _padded(trainer, solutions)
    weights = sum(m.weight.numel() for m in trainer.model.modules() if isinstance(m, torch.nn.Linear) and _frozen(m))
    ideal = _matrix_rate() / (4 * weights)
    return [
        Figure("value training: labelled nodes, packed", found, "nodes/s"),
        Figure("value training: one padded sequence per trace", by_trace, "nodes/s"),
        Figure("value training: one padded sequence per prefix", by_prefix, "nodes/s"),
        Figure("value training: packed ÷ per prefix", found / by_prefix, "×", aim=AIM, better="higher"),
        Figure("value training: packed ÷ per trace", found / by_trace, "×"),
        Figure("value training: computed tokens ÷ what bare bfloat16 matrix products allow", computed / ideal, "×"),
        Figure("policy training: traces, packed", len(solutions) / packed, "traces/s"),
        Figure("policy training: packed ÷ one padded sequence per trace", padded / packed, "×"),
    ]


def _frozen(module: Any) -> bool:
    """Whether a linear map is one of the base model's layers, computed forward and backward for every token."""
    return not module.weight.requires_grad and module.out_features < 10_000


def device() -> str:
    """Where the models are trained: on a GPU in batches that fill it."""
    from restmcts.models import pick_device

    return pick_device()


def _trainer(folder: Path, kind: str, model: Any, examples: Sequence[Any], questions: Sequence[str]) -> Any:
    """A trainer as `train_policy` and `train_value` make it; on a CPU with the demo preset's sizes."""
    import torch
    from transformers import TrainingArguments

    from restmcts.train import common, packing, policy, settings, value

    sizes = (1024, 512) if device() == "cpu" else (65536, 16384)
    of_value, of_policy = settings.ValueTraining(batch_tokens=sizes[0]), settings.PolicyTraining(batch_tokens=sizes[1])
    chosen: Any = of_policy if kind == "policy" else of_value
    precision = common.precision_of(model.dtype, chosen, device())
    model, blocked = common.prepare(model, precision)
    more = {"task_type": "CAUSAL_LM"} if kind == "policy" else {"task_type": "TOKEN_CLS", "modules_to_save": ["score"]}
    plan = packing.plan_steps([len(example.ids) for example in examples], questions, chosen, 0)
    plan = packing.Plan(plan.steps[: len(plan.steps) // chosen.epochs])
    options: dict[str, Any] = {
        "model": common.add_lora(model, chosen, 0, **more),
        "args": TrainingArguments(**common.training_arguments(chosen, plan, folder, 0, precision.mixed, Tracking())),
        "examples": examples,
        "plan": plan,
        "limit": common.micro_tokens_of(chosen),
        "blocked": blocked,
    }
    if kind == "policy":
        return policy.PolicyTrainer(**options, shift=True, label_dtype=torch.long)
    return value.ValueTrainer(**options, shift=False, label_dtype=torch.float32, settings=chosen)


def _packed(trainer: Any) -> tuple[float, int]:
    """Seconds for the gradients of all steps, and the tokens that were computed."""
    from restmcts.models import one_thread

    steps = list(trainer.get_train_dataloader())
    model = trainer._wrap_model(trainer.accelerator.prepare_model(trainer.model))
    with one_thread():  # as trainings do: passes have threads of their own
        for step in steps[:3]:  # the first pass of a size prepares kernels
            trainer.training_step(model, step)
        seconds = timed(lambda: [trainer.training_step(model, step) for step in steps])[1]
    return seconds, sum(one["inputs"]["input_ids"].numel() for step in steps for one in step["passes"])


def _padded(trainer: Any, examples: Sequence[Any]) -> float:
    """Seconds for the gradients of the examples, each a row of its own among rows of about its length."""
    import torch

    from restmcts.train.packing import IGNORED

    trainer.model.get_base_model().set_attn_implementation("eager")  # faster than torch's own at these lengths
    model = trainer.model.to(trainer.args.device)
    most = TOKENS_OF_A_PASS if trainer.args.device.type == "cpu" else GPU_TOKENS_OF_A_PASS
    waiting = sorted(examples, key=lambda example: len(example.ids))
    batches = []
    while waiting:
        width = len(waiting[-1].ids)
        rows = [waiting.pop() for _ in range(min(len(waiting), max(1, most // width)))]
        ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORED, dtype=trainer.label_dtype)
        for i, row in enumerate(rows):
            n = len(row.ids)
            ids[i, :n], mask[i, :n], labels[i, :n] = torch.tensor(row.ids), 1, torch.tensor(row.labels)
        batch = (ids, mask, labels.roll(-1, 1) if trainer.shift else labels)
        batches.append(tuple(tensor.to(model.device) for tensor in batch))

    head = trainer.model.get_output_embeddings() if trainer.shift else None

    def gradients(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> None:
        chosen = labels != IGNORED
        hook = head.register_forward_pre_hook(lambda _, args: (args[0][chosen],)) if head is not None else None
        with torch.autocast(model.device.type, torch.bfloat16, enabled=trainer.args.bf16):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if hook is not None:
            hook.remove()
        else:
            logits = logits[chosen]
        learned = labels[chosen]
        trainer.pass_loss(logits.float(), learned, torch.ones(len(learned), device=model.device)).backward()

    for batch in batches[:2]:
        gradients(*batch)

    def work() -> None:
        for batch in batches:
            gradients(*batch)

    return timed(work)[1]


def _matrix_rate() -> float:
    """Operations a second of bare bfloat16 products at the shapes of a pass, all cores at work."""
    import torch

    tokens = 512 if device() == "cpu" else 16384
    x = torch.randn(tokens, 576, device=device()).bfloat16()
    w = torch.randn(1536, 576, device=device()).bfloat16()

    def multiply() -> None:
        for _ in range(100):
            torch.nn.functional.linear(x, w)

    multiply()
    return 100 * 2 * tokens * 576 * 1536 / min(timed(multiply)[1] for _ in range(3))
