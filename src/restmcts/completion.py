"""Scripts with which a shell completes `restmcts`: written from the commands themselves, they start nothing on TAB.

zsh runs the script for bash, by its own `bashcompinit`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from restmcts.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")


@dataclass(slots=True)
class Command:
    """A command as a shell sees it."""

    path: tuple[str, ...]
    help: str
    words: dict[str, str] = field(default_factory=dict)
    """its own commands"""
    first: list[str] = field(default_factory=list)
    """what its first argument can be, where that is known"""
    options: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    """options that take no value"""


def script(shell: str, root: Any, values: Mapping[str, list[str]], arguments: Mapping[str, list[str]]) -> str:
    """The script for a shell. `values` are what options can be, by their names; `arguments` what may follow a command.

    Raises ConfigError for a shell that is not known.
    """
    commands = list(_walk(root, ("restmcts",), arguments))
    if shell == "fish":
        return _fish(commands, values)
    if shell not in SHELLS:
        raise ConfigError(f"shell {shell!r} is not known; give {', '.join(SHELLS)}")
    return _bash(commands, values, shell)


def _walk(command: Any, path: tuple[str, ...], arguments: Mapping[str, list[str]]) -> Iterator[Command]:
    """A command of the command line's parser, and all below it."""
    found = Command(path, _line(command.help))
    inner: Mapping[str, Any] = getattr(command, "commands", {})
    found.words = {name: _line(one.help) for name, one in inner.items() if not one.hidden}
    found.first = arguments.get(" ".join(path[1:]), [])
    for parameter in command.params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            if name.startswith("--"):
                found.options[name] = _line(getattr(parameter, "help", ""))
                if getattr(parameter, "is_flag", False):
                    found.flags.add(name)
    found.options["--help"] = "show what the command does"
    found.flags.add("--help")
    yield found
    for name, one in inner.items():
        if not one.hidden:
            yield from _walk(one, (*path, name), arguments)


def _line(text: str | None) -> str:
    """The first sentence of a help text, on one line."""
    return re.split(r"[;.](?:\s|$)", " ".join((text or "").split()))[0]


# ---------------------------------------------------------------- bash, and zsh


def _bash(commands: list[Command], values: Mapping[str, list[str]], shell: str) -> str:
    paths = "|".join(shlex.quote(" ".join(one.path)) for one in commands if len(one.path) > 1)
    words = "\n".join(
        f"        {shlex.quote(' '.join(one.path))}) words={shlex.quote(' '.join(one.words))} "
        f"first={shlex.quote(' '.join(one.first))} options={shlex.quote(' '.join(one.options))} ;;"
        for one in commands
    )
    chosen = "\n".join(
        f'        {name}) COMPREPLY=($(compgen -W {shlex.quote(" ".join(known))} -- "$current")); return ;;'
        for name, known in values.items()
    )
    taking = sorted({name for one in commands for name in one.options if name not in one.flags and name not in values})
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""# Completion of restmcts. For this shell: eval "$(restmcts completion {shell})"
{head}_restmcts() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
    local path=restmcts words= first= options= i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$path ${{COMP_WORDS[i]}}" in
        {paths}) path="$path ${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$previous" in
{chosen}
        {"|".join(taking)}) COMPREPLY=($(compgen -f -- "$current")); return ;;
    esac
    case "$path" in
{words}
    esac
    if [ "$previous" = "${{path##* }}" ]; then words="$words$first"; fi
    if [[ "$current" == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$current"))
    else
        COMPREPLY=($(compgen -W "$words" -- "$current"))
        [ -n "$words" ] || COMPREPLY=($(compgen -f -- "$current"))
    fi
}}
complete -o filenames -o bashdefault -o default -F _restmcts restmcts
"""


# ---------------------------------------------------------------- fish


def _fish(commands: list[Command], values: Mapping[str, list[str]]) -> str:
    lines = ["# Completion of restmcts. For this shell: restmcts completion fish | source"]
    for one in commands:
        inner = sorted(other.path[-1] for other in commands if other.path[:-1] == one.path)
        seen = [f"__fish_seen_subcommand_from {name}" for name in one.path[1:]]
        unseen = [f"not __fish_seen_subcommand_from {' '.join(inner)}"] if inner else []
        condition = " -n " + _quoted("; and ".join(seen + unseen)) if seen or unseen else ""
        for word, text in {**one.words, **dict.fromkeys(one.first, "")}.items():
            lines.append(f"complete -c restmcts{condition} -f -a {_quoted(word)}{_described(text)}")
        condition = " -n " + _quoted("; and ".join(seen)) if seen else condition
        for name, text in one.options.items():
            known = f" -x -a {_quoted(' '.join(values[name]))}" if name in values else ""
            value = "" if name in one.flags else known or " -r"
            lines.append(f"complete -c restmcts{condition} -l {name[2:]}{value}{_described(text)}")
    return "\n".join(lines) + "\n"


def _described(text: str) -> str:
    return f" -d {_quoted(text)}" if text else ""


def _quoted(text: str) -> str:
    """As fish quotes: within single quotes only these two signs mean something."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
