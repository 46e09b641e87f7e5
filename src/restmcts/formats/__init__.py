"""Other projects' data formats: stored rows and trees written in them, and their labelled solutions read as rows.

Each format is one short module; `EXPORTS` and `IMPORTS` name what there is. What a format cannot hold is said in
docs/formats.md.
"""

from __future__ import annotations

from restmcts.formats import (
    math_shepherd,
    preference,
    prm800k,
    processbench,
    reference,
    rlhflow,
    sft,
    stepwise,
)
from restmcts.formats.common import Export, Import

EXPORTS: dict[str, Export] = {
    "sft": Export("policy", sft.write),
    "preference": Export("pairs", preference.write),
    "stepwise": Export("marked", stepwise.write),
    "math-shepherd": Export("marked", math_shepherd.write),
    "prm800k": Export("marked", prm800k.write),
    "rlhflow": Export("marked", rlhflow.write),
    "reference-value": Export("value", reference.write_value),
    "reference-policy": Export("solutions", reference.write_policy),
}
"""format → what of a run it is made of (`formats.stored`), and the function that writes one of these"""

IMPORTS: dict[str, Import] = {
    "prm800k": prm800k.read,
    "math-shepherd": math_shepherd.read,
    "processbench": processbench.read,
    "stepwise": stepwise.read,
    "reference-value": reference.read_value,
}
"""format → the function that reads a file or a hub data set of it as rows for the value model"""
