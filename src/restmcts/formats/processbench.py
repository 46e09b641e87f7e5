"""ProcessBench (Zheng et al., arXiv 2412.06559): solutions with the index of their first wrong step, −1 for none."""

from __future__ import annotations

from collections.abc import Iterator

from restmcts.errors import TaskError
from restmcts.formats.common import ImportOptions, value_row
from restmcts.lens.processbench import rows_of, sample_of
from restmcts.rows import ValueRow


def read(source: str, options: ImportOptions) -> Iterator[ValueRow | TaskError | None]:
    """Steps before the first wrong one are right; what follows it was not judged and is left out."""
    for where, row in rows_of(source):
        try:
            sample = sample_of(row, where)
        except TaskError as error:
            yield error
            continue
        steps, wrong = [step.strip() for step in sample.steps], sample.label
        kept = steps if wrong < 0 else steps[: wrong + 1]
        right: list[float | None] = [float(k != wrong) for k in range(len(kept))]
        yield value_row(sample.question.strip(), kept, right, options.scale, total=len(steps))
