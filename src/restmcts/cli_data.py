"""The commands that look at runs, carry data and models in and out, and help with the machine; see `cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restmcts import __version__
from restmcts.options import Config, Out, Quiet, Set, listed

Round = Annotated[int | None, typer.Option("--round", min=0, help="of a run: this round; default: the last")]
Limit = Annotated[int | None, typer.Option(min=1, help="only the first so many")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(name="report")(report_command)
    app.command()(view)
    app.command()(generate)
    app.command(name="export")(export_rows)
    app.command(name="import")(import_rows)
    app.command()(push)
    app.command()(doctor)
    app.command()(completion)
    app.command()(version)


# ---------------------------------------------------------------- looking at runs


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


# ---------------------------------------------------------------- data in and out


def export_rows(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="sft, preference, stepwise, math-shepherd, prm800k, rlhflow, reference-value or reference-policy",
        ),
    ],
    source: Annotated[Path, typer.Argument(help="a run, the folder of a label stage, or a file of rows")],
    out: Annotated[Path, typer.Argument(help="file to write: .jsonl or .parquet")],
    round: Round = None,
    threshold: Annotated[
        float, typer.Option(help="a step is right where 1 - r reaches it, for formats with hard labels")
    ] = 0.5,
    soft: Annotated[bool, typer.Option(help="keep 1 - r itself; the format stepwise can hold it")] = False,
    trees: Annotated[
        bool, typer.Option("--trees", help="all that the labelled trees hold, not only the rows chosen for training")
    ] = False,
    margin: Annotated[
        float, typer.Option(min=0, help="preference from trees: least difference in v of two sibling steps")
    ] = 0.0,
    limit: Limit = None,
    force: Annotated[bool, typer.Option("--force", help="write over a file that is there")] = False,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Write stored rows or trees in the format of another project (docs/formats.md)."""
    from restmcts.formats.command import export, settings_of
    from restmcts.formats.common import ExportOptions

    prompt = settings_of(source, config, overrides or ()).prompt
    options = ExportOptions(threshold=threshold, soft=soft, prompt=prompt)
    written, left_out = export(
        name, source, out, options, round=round, from_trees=trees, margin=margin, limit=limit, force=force
    )
    print(f"{written} lines: {out}" + (f"; {left_out} rows are left out, which {name} cannot hold" if left_out else ""))


def import_rows(
    name: Annotated[
        str,
        typer.Argument(metavar="FORMAT", help="prm800k, math-shepherd, processbench, stepwise or reference-value"),
    ],
    source: Annotated[str, typer.Argument(help="JSONL or Parquet file, or hub data set name[:config][@split]")],
    out: Annotated[Path, typer.Option(help="folder for value_rows.jsonl")],
    values: Annotated[
        str,
        typer.Option(help="v of a step: right (1 or 0), or progress (how far along, by ReST-MCTS*'s Eqs. 1 and 2)"),
    ] = "right",
    neutral: Annotated[float, typer.Option(help="prm800k: how right a step rated 0 is, from 0 to 1")] = 1.0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave bad rows out, instead of stopping")] = False,
    limit: Limit = None,
) -> None:
    """Read another project's labelled solutions as rows to train a value model on (docs/formats.md)."""
    from restmcts.errors import ConfigError
    from restmcts.formats.command import import_rows as read
    from restmcts.formats.common import ImportOptions

    if values not in ("right", "progress"):
        raise ConfigError(f"--values {values!r}: it must be right or progress")
    options = ImportOptions(scale="right" if values == "right" else "progress", neutral=neutral)
    made = read(name, source, out, options, limit=limit, skip_bad=skip_bad)
    print(f"{made['rows']} rows for the value model: {out / 'value_rows.jsonl'}")
    if made["said_nothing"]:
        print(f"{made['said_nothing']} rows say nothing about a step")
    if made["bad"]:
        print(f"{made['bad']} bad rows are left out, the first of them: {made['first_bad']}")


def push(
    source: Annotated[Path, typer.Argument(help="a run, or the folder of a model, of trees or of rows")],
    repo: Annotated[str, typer.Argument(help="owner/name on the hub")],
    what: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="of a run: policy, value, data or all; default: policy")
    ] = None,
    round: Round = None,
    public: Annotated[bool, typer.Option("--public", help="for all to see; default: private")] = False,
    message: Annotated[str | None, typer.Option(help="of the commit")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list what would be uploaded, with sizes")] = False,
    quiet: Quiet = False,
) -> None:
    """Put models or data of a run on the Hugging Face hub, with cards; private unless --public."""
    from rich.console import Console

    from restmcts.hub import listing, uploads
    from restmcts.hub import push as upload

    made = uploads(source, repo, listed(what), round)
    if dry_run:
        for table in listing(made, public):
            table.show(Console())
        print("nothing was uploaded")
        return
    for address in upload(made, public=public, message=message, quiet=quiet):
        print(address)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False) -> None:
    """Show what this machine can do, what it lacks and how to get that."""
    from restmcts import doctor as looking

    found = looking.examine()
    if as_json:
        import json

        print(json.dumps(looking.as_json(found)))
        return
    from rich.console import Console

    looking.report(found).show(Console())


def completion(
    context: typer.Context, shell: Annotated[str, typer.Argument(help="bash, zsh or fish")] = "bash"
) -> None:
    """Print a script with which a shell completes commands and options: eval "$(restmcts completion bash)"."""
    from typing import get_args

    from restmcts.completion import SHELLS, script
    from restmcts.config import presets
    from restmcts.formats import EXPORTS, IMPORTS
    from restmcts.hub import What
    from restmcts.sections import MethodName

    values = {
        "--preset": presets(),
        "--method": list(get_args(MethodName)),
        "--labels": ["oracle", "majority", "judge"],
        "--values": ["right", "progress"],
        "--what": [*get_args(What), "all"],
    }
    arguments = {"export": [*EXPORTS], "import": [*IMPORTS], "completion": [*SHELLS]}
    print(script(shell, context.find_root().command, values, arguments), end="")


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


def version() -> None:
    """Print the version."""
    print(f"restmcts {__version__}")
