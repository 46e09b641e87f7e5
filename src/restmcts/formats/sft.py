"""TRL's conversational format for supervised fine-tuning: one message list a solution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from restmcts.encoding import assistant_turn, chat_turns, plain_prompt, shown_examples
from restmcts.formats.common import ExportOptions
from restmcts.rows import PolicyRow


def write(row: PolicyRow, options: ExportOptions) -> Iterator[dict[str, Any]]:
    """`messages`: instruction, question, solution. For a prompt without a chat: `prompt` and `completion`, as text."""
    prompt, problem = options.prompt, row.problem()
    shown, solution = shown_examples(prompt, ()), prompt.delimiter.join(row.steps)
    if prompt.chat:
        yield {"messages": [*chat_turns(prompt, shown, problem), assistant_turn(solution)]}
    else:
        yield {"prompt": plain_prompt(prompt, shown, problem), "completion": solution}
