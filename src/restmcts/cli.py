"""The command line: the whole loop, each of its stages by itself, and one question.

Commands read settings alike: defaults, `--preset`, a YAML file, flags, `--set name=value`, each over the one before.
Heavy libraries load inside the commands that need them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restmcts import __version__
from restmcts.shell import guarded

if TYPE_CHECKING:
    from restmcts.config import RunConfig
    from restmcts.console import Progress

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

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings")]
Preset = Annotated[str | None, typer.Option(help="built-in settings to start from, e.g. demo")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="any setting, by its dotted name")]
Policy = Annotated[
    str | None, typer.Option(help="embedded, a checkpoint folder, a hub id, or scripted (no model, for trying out)")
]
Value = Annotated[str | None, typer.Option(help="value model: a checkpoint folder or a hub id")]
Problems = Annotated[
    str | None,
    typer.Option(help="JSONL, JSON, CSV or Parquet file, hub data set name[:config][@split], or gsm8k, math500, …"),
]
Out = Annotated[Path, typer.Option(help="folder for the results; run the same command again to resume")]
Seed = Annotated[int | None, typer.Option(help="of everything random")]
Redo = Annotated[
    list[str] | None,
    typer.Option(metavar="STAGE", help="set aside a stage (named as its folder) and all that follows from it"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="show no progress")]


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
    overrides: Set = None,
    redo: Redo = None,
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
    }
    settings = _settings(config, preset, overrides, **flags)
    settings.check_complete()
    with Progress(mode="quiet" if quiet else "auto") as progress:
        _set_aside(settings.out, redo, progress)
        run_loop(settings, progress=progress)
    path = report(settings.out, Console())
    print(f"report: {path}")


@app.command(name="report")
def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders; several are seeds of one run")],
    out: Annotated[Path | None, typer.Option(help="also write the report to this Markdown file")] = None,
    html: Annotated[Path | None, typer.Option(help="also write it as one HTML file with plots and trees")] = None,
) -> None:
    """Show the tables of a finished run, or of several seeds of it together."""
    from rich.console import Console

    from restmcts.report import combine

    combine(runs, Console(), out)
    if html is not None:
        from restmcts.view.page import write_page

        write_page(runs, html)
        print(f"page: {html}")


@app.command()
def view(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run or of one stage, finished or not")],
    host: Annotated[str, typer.Option(help="address to listen on; another than this machine's own needs a token")] = (
        "127.0.0.1"
    ),
    port: Annotated[int | None, typer.Option(help="default: the first free one from 8421 on")] = None,
    browser: Annotated[bool, typer.Option(help="open it in the browser")] = True,
) -> None:
    """Look at a run in the browser: its numbers, its questions, its search trees; also while it is going."""
    from restmcts.view.server import view as serve

    def show(url: str) -> None:
        print(f"{run}: {url}  (Ctrl-C ends it)", flush=True)
        if browser:
            import webbrowser

            webbrowser.open(url)

    serve(run, host=host, port=port, show=show)


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

    settings = _settings(config, preset, overrides, policy=policy, value=value, seed=seed)
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
    quiet: Quiet = False,
) -> None:
    """Grow a search tree for every problem; writes OUT/trees.jsonl."""
    from restmcts.commands import search_problems

    settings = _settings(config, preset, overrides, policy=policy, value=value, problems=problems, seed=seed)
    search_problems(settings, out, _progress(quiet))


@app.command()
def label(
    trees: Annotated[Path, typer.Argument(help="trees.jsonl of a search, or its folder")],
    out: Out,
    policy: Annotated[
        str | None, typer.Option(help="who completes the steps, for the rules math-shepherd and omega-prm")
    ] = None,
    config: Config = None,
    preset: Preset = None,
    overrides: Set = None,
    seed: Seed = None,
    quiet: Quiet = False,
) -> None:
    """Grade the answers of stored trees and label their steps; writes labels and training rows to OUT."""
    from restmcts.commands import label_stored_trees

    label_stored_trees(_settings(config, preset, overrides, policy=policy, seed=seed), trees, out, _progress(quiet))


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
    from restmcts.commands import train_model

    train_model("policy", _settings(config, preset, overrides, seed=seed), rows, base, out, _progress(quiet))


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
    from restmcts.commands import train_model

    train_model("value", _settings(config, preset, overrides, seed=seed), rows, base, out, _progress(quiet))


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
    settings = _settings(config, preset, overrides, policy=policy, value=value, problems=problems, seed=seed)
    evaluate_problems(settings, out, _progress(quiet))


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

    settings = _settings(config, preset, overrides, value=value, seed=seed)
    run(settings, processbench or [], trees, threshold, out, _progress(quiet))


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
    redo: Redo = None,
    quiet: Quiet = False,
) -> None:
    """Compare search methods at equal budgets of tokens: accuracy against cost, with intervals and tests.

    Arms, budgets and seeds can be added later with the same --out.
    """
    from rich.console import Console

    from restmcts.compare.command import compare_methods
    from restmcts.compare.report import MARKDOWN, PLOT

    flags = {"budgets": _listed(budgets), "methods": _listed(methods), "unit": unit, "seeds": seeds}
    given = {name: value for name, value in (flags | {"baseline": baseline}).items() if value is not None}
    models = {"policy": policy, "value": value, "problems": problems, "seed": seed}
    settings = _settings(config, preset, overrides, **models, compare=given or None)
    progress = _progress(quiet)
    _set_aside(out, redo, progress)
    console = Console()
    for table in compare_methods(settings, out, progress):
        table.show(console)
    print(f"report: {out / MARKDOWN}, plot: {out / PLOT}")


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


# ---------------------------------------------------------------- odds and ends


@app.command()
def generate(
    out: Out,
    name: Annotated[str, typer.Argument(help="which built-in problem set")] = "demo",
    train: Annotated[int, typer.Option(min=1, help="questions to search on")] = 300,
    heldout: Annotated[int, typer.Option(min=0, help="questions to evaluate on")] = 300,
    worked: Annotated[int, typer.Option(min=0, help="worked examples")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="which questions")] = 0,
) -> None:
    """Write a built-in problem set to OUT as train.jsonl, heldout.jsonl and worked.jsonl."""
    from restmcts.commands import write_generated

    write_generated(name, out, train=train, heldout=heldout, worked=worked, seed=seed)


@app.command()
def version() -> None:
    """Print the version."""
    print(f"restmcts {__version__}")


def _settings(path: Path | None, preset: str | None, overrides: list[str] | None, **flags: Any) -> RunConfig:
    from restmcts.config import load_config

    return load_config(path, preset=preset, flags=flags, overrides=overrides or ())


def _set_aside(out: Path, stages: list[str] | None, progress: Progress) -> None:
    from restmcts.store import RunFolder

    if stages:
        with RunFolder(out) as folder:
            for stage in stages:
                progress.say(f"set aside: {', '.join(folder.redo(stage))}")


def _progress(quiet: bool) -> Any:
    from restmcts.console import Progress

    return Progress(mode="quiet" if quiet else "auto")
