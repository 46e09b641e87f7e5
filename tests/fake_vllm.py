"""A stand-in for the vllm package: enough of it for `engines/vllm_process.py`, in a process that starts at once.

It draws the ids after the prompt's last one. Some prompts are special: [666] crashes the process, [667] makes the
engine fail, [668] is refused, [669] never ends. What it is told to do is written to `journal` in the folder of
temporary files, one word a line.
"""

from __future__ import annotations

from pathlib import Path

ENGINE = """
import os, signal
from types import SimpleNamespace as Facts

class LLMEngine:
    def __init__(self, args):
        if args.get("model") == "broken":
            raise RuntimeError("no such architecture")
        self.model_config = Facts(max_model_len=args.get("max_model_len", 100))
        self.open = {}

    @classmethod
    def from_engine_args(cls, args):
        print("noise on standard output", flush=True)
        return cls(args)

    def note(self, text):
        with open(os.path.join(os.environ["TMPDIR"], "journal"), "a") as file:
            print(text, file=file)

    def has_unfinished_requests(self):
        return bool(self.open)

    def add_request(self, number, prompt, params):
        if prompt["prompt_token_ids"][-1] == 668:
            raise ValueError("not this one")
        self.open[number] = prompt["prompt_token_ids"], params

    def abort_request(self, numbers):
        for number in numbers:
            if self.open.pop(number, None):
                self.note("abort")

    def step(self):
        done = []
        for number, (ids, params) in list(self.open.items()):
            last = ids[-1]
            if last == 666:
                os.kill(os.getpid(), signal.SIGKILL)
            if last == 667:
                raise RuntimeError("the model is\\nill")
            if last == 669:
                continue
            del self.open[number]
            new = list(range(last + 1, last + 1 + params["max_tokens"]))
            stops = [i for i, token in enumerate(new) if token in params.get("stop_token_ids", ())]
            reason = "stop" if stops else "length"
            new = new[: stops[0] + 1] if stops else new
            outputs = [Facts(token_ids=new, finish_reason=reason, cumulative_logprob=-1.0)] * params["n"]
            done.append(Facts(finished=True, request_id=number, outputs=outputs, num_cached_tokens=len(ids) - 1))
        return done

    def collective_rpc(self, method, kwargs):
        self.note(method + " " + kwargs["weights_path"])

    def apply_model(self, function):
        self.note(function.__name__)

    def reset_prefix_cache(self):
        self.note("reset")
        return True

    def sleep(self, level):
        self.note("sleep")

    def wake_up(self):
        self.note("wake")
"""


def install(folder: Path) -> dict[str, str]:
    """Write the package into `folder`; the environment in which it is found."""
    files = {
        "vllm/__init__.py": "def SamplingParams(**facts):\n    return facts\n",
        "vllm/engine/arg_utils.py": "def EngineArgs(**options):\n    return options\n",
        "vllm/sampling_params.py": "class RequestOutputKind:\n    FINAL_ONLY = 2\n",
        "vllm/v1/engine/llm_engine.py": ENGINE,
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}
