"""TRL's preference format: a prompt, and two ways to go on from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from restmcts.encoding import assistant_turn, chat_turns, plain_prompt, shown_examples
from restmcts.formats.common import ExportOptions
from restmcts.rows import PreferenceRow


def write(row: PreferenceRow, options: ExportOptions) -> Iterator[dict[str, Any]]:
    """`prompt`, `chosen`, `rejected`: messages, or text for a prompt without a chat.

    What both sides share of the solution leads both: a turn cannot be left open in a conversation, and in a loss on
    the difference of the two sides it cancels.
    """
    prompt, problem = options.prompt, row.problem()
    shown = shown_examples(prompt, ())
    better, worse = (prompt.delimiter.join([*row.steps, *side]) for side in (row.chosen, row.rejected))
    if prompt.chat:
        asked: Any = chat_turns(prompt, shown, problem)
        yield {"prompt": asked, "chosen": [assistant_turn(better)], "rejected": [assistant_turn(worse)]}
    else:
        yield {"prompt": plain_prompt(prompt, shown, problem), "chosen": better, "rejected": worse}
