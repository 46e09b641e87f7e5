"""vLLM in a process of its own: prompts as token ids in, samples as token ids out.

Run as a script by `vllm_client.VllmProcess`; it imports nothing of this package. One request a line on standard input,
`[kind, number, facts]` as JSON; one reply a line, `[number, result]` or `[number, null, error]`. The engine runs in
this very process: scheduler and model share one thread, so that on few cores nothing waits for a message or spins.

It ends when standard input does, whatever has become of its parent; then nothing of it is left.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import threading
from typing import Any, TextIO

READY = 0
"""the number of the first line, which says that requests can come, and of the line that says why none can"""


def main(options: dict[str, Any], folder: str) -> None:
    """Serve requests until standard input ends. `options` are vLLM's engine arguments, `folder` its temporary files."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not look like a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(inbox, folder), daemon=True).start()
    try:
        server = Server(options, replies)
        server.say(READY, {"context": server.engine.model_config.max_model_len})
        server.serve(inbox)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        print(json.dumps([READY, None, f"{type(error).__name__}: {error}"]), file=replies, flush=True)
        os._exit(1)


def _read(inbox: queue.SimpleQueue[str], folder: str) -> None:
    for line in sys.stdin:
        inbox.put(line)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)  # also in the middle of a start or of a step: nobody waits for the result


class Server:
    """The engine, and the requests that are in it."""

    def __init__(self, options: dict[str, Any], replies: TextIO) -> None:
        from vllm import SamplingParams
        from vllm.engine.arg_utils import EngineArgs
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.llm_engine import LLMEngine

        self.engine = LLMEngine.from_engine_args(EngineArgs(**options))
        self._params, self._final = SamplingParams, RequestOutputKind.FINAL_ONLY
        self._replies = replies

    def serve(self, inbox: queue.SimpleQueue[str]) -> None:
        """Take what has come, then one step of the engine; without work, wait."""
        while True:
            while not (inbox.empty() and self.engine.has_unfinished_requests()):
                kind, number, facts = json.loads(inbox.get())
                try:
                    getattr(self, f"on_{kind}")(number, facts)
                except ValueError as error:  # this request cannot be served; the next one may
                    self.say(number, None, f"{error}")
            for output in self.engine.step():
                if output.finished:
                    samples = [[list(c.token_ids), c.finish_reason, c.cumulative_logprob] for c in output.outputs]
                    self.say(int(output.request_id), {"samples": samples, "cached": output.num_cached_tokens or 0})

    def on_sample(self, number: int, facts: dict[str, Any]) -> None:
        """Draw samples: `ids` is the prompt, the rest are vLLM's sampling parameters."""
        prompt = {"prompt_token_ids": facts.pop("ids")}
        params = self._params(**facts, output_kind=self._final)
        self.engine.add_request(str(number), prompt, params)

    def on_cancel(self, number: int, _: Any) -> None:
        """Forget a request; one that is answered or unknown is none."""
        self.engine.abort_request([str(number)])

    def on_load(self, number: int, folder: str) -> None:
        """Exchange the weights in place. What the old ones computed is worth nothing to the new ones."""
        self.engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self.engine.apply_model(_pack_again)
        if not self.engine.reset_prefix_cache():
            raise ValueError("the prefix cache is in use while weights are exchanged")
        self.say(number, {})

    def on_sleep(self, number: int, _: Any) -> None:
        """Give the GPU's memory back until `wake`; the weights wait in main memory."""
        self.engine.reset_prefix_cache()
        self.engine.sleep(level=1)
        self.say(number, {})

    def on_wake(self, number: int, _: Any) -> None:
        self.engine.wake_up()
        self.say(number, {})

    def say(self, number: int, result: Any, *error: str) -> None:
        print(json.dumps([number, result, *error]), file=self._replies, flush=True)


def _pack_again(model: Any) -> None:
    """Renew the copies that a CPU's kernels made of the embeddings.

    vLLM does so for layers that are named in the checkpoint. An output layer tied to the embeddings is not: without
    this it would go on with the old weights.
    """
    for layer in model.modules():
        if hasattr(layer, "cpu_linear") and layer.weight.numel():  # of other layers, only the copy is kept
            layer.quant_method.process_weights_after_loading(layer)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
