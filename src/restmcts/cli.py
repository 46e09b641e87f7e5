"""The command line: the whole loop, each of its stages by itself, and one question.

Heavy libraries load inside the commands that need them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from restmcts import cli_data
from restmcts.options import (
    Config,
    Labels,
    Method,
    Out,
    Policy,
    Preset,
    Problems,
    Quiet,
    Ray,
    Redo,
    Seed,
    Set,
    Value,
    listed,
    read_settings,
    set_aside,
    show_progress,
)
from restmcts.shell import guarded

app = typer.Typer(
    name="restmcts",
    help="ReST-MCTS*: LLM self-training by process-reward-guided tree search.",
    epilog="Everywhere: --debug shows the traceback of an unexpected error.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
train = typer.Typer(help="Train one of the two models on rows that `restmcts label` wrote.")
app.add_typer(train, name="train")
evaluation = typer.Typer(invoke_without_command=True)
app.add_typer(evaluation, name="evaluate")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `restmcts`; ends the process with the codes listed in `shell`."""
    # Hub clients repeat every failed request on the screen; what comes of it in the end is said once, by us.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    sys.exit(guarded(_dispatch, sys.argv[1:] if arguments is None else arguments))


def _dispatch(arguments: list[str]) -> int | None:
    command = typer.main.get_command(app)
    try:
        # Without the framework's own `main`, so that every error reaches `guarded` as it is.
        with command.make_context("restmcts", arguments or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return None


# ---------------------------------------------------------------- the loop


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file of settings")] = None,
    preset: Preset = None,
    policy: Policy = None,
    value: Value = None,
    problems: Problems = None,
    heldout: Annotated[str | None, typer.Option(help="questions to evaluate on, as --problems")] = None,
    worked: Annotated[str | None, typer.Option(help="worked examples with solutions, as --problems")] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder; run the same command again to resume")] = None,
    seed: Seed = None,
    rounds: Annotated[int | None, typer.Option(help="rounds of search and training")] = None,
    method: Method = None,
    labels: Labels = None,
    overrides: Set = None,
    ray: Ray = None,
    redo: Redo = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the settings and which stages are finished; run nothing")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Take a model through the whole self-training loop; the same command resumes after any interruption."""
    from rich.console import Console

    from restmcts.console import Progress
    from restmcts.loop import run as run_loop
    from restmcts.report import report

    flags = {
        "policy": policy,
        "value": value,
        "problems": problems,
        "heldout": heldout,
        "worked": worked,
        "out": out,
        "seed": seed,
        "rounds": rounds,
        "method": method,
        "labels": labels and {"source": labels},
        "ray": ray,
    }
    settings = read_settings(config, preset, overrides, **flags)
    if dry_run:
        from restmcts.preview import show_run

        show_run(settings, Console())
        return
    settings.check_complete()
    with Progress(mode="quiet" if quiet else "auto") as progress:
        set_aside(settings.out, redo, progress)
        run_loop(settings, progress=progress)
    path = report(settings.out, Console())
    print(f"report: {path}")


@app.command()
def plan(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file of settings")] = None,
    preset: Preset = None,
    policy: Policy = None,
    problems: Problems = None,
    heldout: Annotated[str | None, typer.Option(help="questions to evaluate on, as --problems")] = None,
    rounds: Annotated[int | None, typer.Option(help="rounds of search and training")] = None,
    method: Method = None,
    overrides: Set = None,
    questions: Annotated[int | None, typer.Option(min=1, help="training questions, where they cannot be read")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="assumed steps of a solution")] = None,
    step_tokens: Annotated[int | None, typer.Option(min=1, help="assumed tokens of a step")] = None,
    tflops: Annotated[float | None, typer.Option(min=1, help="speed of one GPU in bfloat16, TFLOP/s")] = None,
    gpu_memory: Annotated[float | None, typer.Option(min=1, help="memory of one GPU, GB")] = None,
) -> None:
    """Show the stages of a run with an estimate of tokens, GPU-hours and memory; loads no model and runs nothing."""
    from rich.console import Console

    from restmcts.plan import assumptions, make_plan, show_plan

    flags = {"policy": policy, "problems": problems, "heldout": heldout, "rounds": rounds, "method": method}
    assumed = assumptions(
        questions=questions, steps=steps, step_tokens=step_tokens, tflops=tflops, gpu_memory=gpu_memory
    )
    for table in show_plan(make_plan(read_settings(config, preset, overrides, **flags), assumed)):
        table.show(Console())


@app.command(name="serve")
def serve_command(
    policy: Policy = None,
    value: Value = None,
    config: Config = None,
    preset: Preset = None,
    overrides: Set = None,
    seed: Seed = None,
    host: Annotated[
        str | None, typer.Option(help="address to listen on; another than loopback needs RESTMCTS_SERVE_KEY")
    ] = None,
    port: Annotated[int | None, typer.Option(help="default: 8400; 0: any free one")] = None,
) -> None:
    """Answer chat requests with a search: an OpenAI-compatible server over the policy and the value model."""
    from restmcts.commands import open_engines
    from restmcts.serve.server import serve

    given = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    settings = read_settings(config, preset, overrides, policy=policy, value=value, seed=seed, serve=given or None)
    serve(settings, lambda: open_engines(settings), lambda url: print(f"{url}  (Ctrl-C ends it)", flush=True))


# ---------------------------------------------------------------- one question


@app.command()
def solve(
    question: Annotated[str, typer.Argument(help="the question")],
    policy: Policy = None,
    value: Value = None,
    config: Config = None,
    preset: Preset = None,
    overrides: Set = None,
    seed: Seed = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the whole search tree as one JSON line")] = False,
) -> None:
    """Search for the answer to one question; show its steps with their values, and what it cost.

    Ends with exit code 1 when no answer was found.
    """
    from restmcts.commands import print_solution, solve_question

    settings = read_settings(config, preset, overrides, policy=policy, value=value, seed=seed)
    tree = solve_question(settings, question)
    if as_json:
        import json

        print(json.dumps(tree.to_record(), ensure_ascii=False))
    else:
        print_solution(tree)
    if tree.final_answer is None:
        raise typer.Exit(1)


# ---------------------------------------------------------------- each stage by itself


@app.command()
def search(
    out: Out,
    policy: Policy = None,
    value: Value = None,
    problems: Problems = None,
    config: Config = None,
    preset: Preset = None,
    overrides: Set = None,
    seed: Seed = None,
    ray: Ray = None,
    quiet: Quiet = False,
) -> None:
    """Grow a search tree for every problem; writes OUT/trees.jsonl."""
    from restmcts.commands import search_problems

    given = {"policy": policy, "value": value, "problems": problems, "seed": seed, "ray": ray}
    search_problems(read_settings(config, preset, overrides, **given), out, show_progress(quiet))


@app.command()
def label(
    trees: Annotated[Path, typer.Argument(help="trees.jsonl of a search, or its folder")],
    out: Out,
    labels: Labels = None,
    policy: Annotated[
        str | None, typer.Option(help="who completes the steps, for the rules math-shepherd and omega-prm")
    ] = None,
    config: Config = None,
    preset: Preset = None,
    overrides: Set = None,
    seed: Seed = None,
    ray: Ray = None,
    quiet: Quiet = False,
) -> None:
    """Grade the answers of stored trees and label their steps; writes labels and training rows to OUT."""
    from restmcts.commands import label_stored_trees

    given = {"policy": policy, "seed": seed, "labels": labels and {"source": labels}, "ray": ray}
    label_stored_trees(read_settings(config, preset, overrides, **given), trees, out, show_progress(quiet))


@train.command(name="policy")
def train_policy(
    rows: Annotated[Path, typer.Argument(help="policy_rows.jsonl of a label step, or its folder")],
    base: Annotated[str, typer.Option(help="model to start from: embedded, a checkpoint folder or a hub id")],
    out: Out,
    config: Config = None,
    preset: Preset = None,
    overrides: Set = None,
    seed: Seed = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a policy on correct traces; writes a checkpoint to OUT."""
    from restmcts.train_command import train_model

    train_model("policy", read_settings(config, preset, overrides, seed=seed), rows, base, out, show_progress(quiet))


@train.command(name="value")
def train_value(
    rows: Annotated[Path, typer.Argument(help="value_rows.jsonl of a label step, or its folder")],
    base: Annotated[str, typer.Option(help="value model or language model to start from")],
    out: Out,
    config: Config = None,
    preset: Preset = None,
    overrides: Set = None,
    seed: Seed = None,
    quiet: Quiet = False,
) -> None:
    """Train a value model on labelled traces; writes a checkpoint to OUT."""
    from restmcts.train_command import train_model

    train_model("value", read_settings(config, preset, overrides, seed=seed), rows, base, out, show_progress(quiet))


@evaluation.callback()
def evaluate(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="folder for the results; run the same command again to resume")
    ] = None,
    policy: Policy = None,
    value: Value = None,
    problems: Problems = None,
    config: Config = None,
    preset: Preset = None,
    overrides: Set = None,
    seed: Seed = None,
    ray: Ray = None,
    quiet: Quiet = False,
) -> None:
    """Answer problems with known answers, greedily and by search; shows accuracy with interval, and cost.

    `restmcts evaluate value` evaluates a value model alone.
    """
    from restmcts.commands import evaluate_problems

    if context.invoked_subcommand is not None:
        if any(context.params.values()):
            context.fail(f"options belong after {context.invoked_subcommand!r}")
        return
    if out is None:
        context.fail("Missing option '--out'")
    given = {"policy": policy, "value": value, "problems": problems, "seed": seed, "ray": ray}
    evaluate_problems(read_settings(config, preset, overrides, **given), out, show_progress(quiet))


@evaluation.command(name="value")
def evaluate_value(
    out: Out,
    value: Value = None,
    processbench: Annotated[
        list[str] | None,
        typer.Option(help="file with problem, steps and label; or processbench, processbench@gsm8k (from the hub)"),
    ] = None,
    trees: Annotated[
        Path | None, typer.Option(help="trees.jsonl of a search, or its folder; of the method `sample` for Best-of-N")
    ] = None,
    threshold: Annotated[
        str,
        typer.Option(help="of ProcessBench: a number, the subset to choose it on, or halves: each half by the other"),
    ] = "halves",
    config: Config = None,
    preset: Preset = None,
    overrides: Set = None,
    seed: Seed = None,
    quiet: Quiet = False,
) -> None:
    """Measure a value model: on ProcessBench, and on stored trees with known answers.

    Shows F1 on ProcessBench, Best-of-N and weighted votes over stored samples, error by depth, calibration, and how
    siblings are ranked; writes them to OUT/evaluate-value.md and OUT/metrics.json.
    """
    from restmcts.commands import evaluate_value as run

    settings = read_settings(config, preset, overrides, value=value, seed=seed)
    run(settings, processbench or [], trees, threshold, out, show_progress(quiet))


@app.command()
def compare(
    out: Out,
    policy: Policy = None,
    value: Value = None,
    problems: Problems = None,
    methods: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="search methods, or arms of the settings (compare.arms)")
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(metavar="1,2,…", help="tokens for a question, in greedy answers' worth or --unit")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="what budgets count: answers or tokens")] = None,
    seeds: Annotated[int | None, typer.Option(help="how often every question is answered")] = None,
    baseline: Annotated[str | None, typer.Option(help="test the others against this one; default: all pairs")] = None,
    config: Config = None,
    preset: Preset = None,
    overrides: Set = None,
    seed: Seed = None,
    ray: Ray = None,
    redo: Redo = None,
    quiet: Quiet = False,
) -> None:
    """Compare search methods at equal budgets of tokens: accuracy against cost, with intervals and tests.

    Arms, budgets and seeds can be added later with the same --out.
    """
    from rich.console import Console

    from restmcts.compare.command import compare_methods
    from restmcts.compare.report import MARKDOWN, PLOT

    flags = {"budgets": listed(budgets), "methods": listed(methods), "unit": unit, "seeds": seeds}
    given = {name: value for name, value in (flags | {"baseline": baseline}).items() if value is not None}
    models = {"policy": policy, "value": value, "problems": problems, "seed": seed, "ray": ray}
    settings = read_settings(config, preset, overrides, **models, compare=given or None)
    progress = show_progress(quiet)
    set_aside(out, redo, progress)
    console = Console()
    for table in compare_methods(settings, out, progress):
        table.show(console)
    print(f"report: {out / MARKDOWN}, plot: {out / PLOT}")


# ---------------------------------------------------------------- what carries data and looks at it

cli_data.register(app)
