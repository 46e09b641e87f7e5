"""RLHFlow's data for process reward models (Xiong et al., 2024): a chat, a step a turn, answered with + or -.

The first turn holds the question and the first step with a space between them: where one ends cannot be told, so this
format is written and not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from restmcts.encoding import assistant_turn, user_turn
from restmcts.formats.common import ExportOptions, Marked


def write(solution: Marked, options: ExportOptions) -> Iterator[dict[str, Any]]:
    """Steps as they are, as `engines.prm` puts them to such a model."""
    said = [f"{solution.question} {solution.steps[0]}", *solution.steps[1:]]
    turns = []
    for text, right in zip(said, solution.signs(options.threshold), strict=True):
        turns += [user_turn(text), assistant_turn("+" if right else "-")]
    yield {"conversations": turns}
