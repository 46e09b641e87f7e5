"""The command line, with accelerate taken in: it knows FSDP on GPUs only, and torch can do it on CPUs as well.

Run by a launcher: `python -m torch.distributed.run … -m tests.fsdp_on_cpu train policy …`.
"""

from __future__ import annotations

import os
from typing import Any

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""what `accelerate launch` sets for FSDP"""


def main() -> None:
    os.environ.update(FSDP)
    from accelerate import state
    from accelerate.utils import DistributedType

    def on_gpus(*_: Any, **__: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    state.PartialState._prepare_backend = on_gpus
    from restmcts.cli import main

    main()


if __name__ == "__main__":
    main()
