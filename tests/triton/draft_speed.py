"""How fast a running server answers with a draft model: whole answers to held-out prompts, one after the other.

inflight serve tests/demo_model/python-7m --draft tests/demo_model/python-1m
python tests/triton/draft_speed.py --model inflight_text
"""

import argparse
import queue
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc

from served import tensor

HELDOUT = Path(__file__).parents[1] / "demo_model" / "heldout.txt"
CHARACTERS = 300  # of a prompt
COUNTS = ("total_draft_tokens", "total_accepted_draft_tokens")


def ask(client, answers, model, inputs):
    """The drafted and accepted tokens of an answer."""
    client.async_stream_infer(model, [tensor(name, value) for name, value in inputs.items()])
    while True:
        result, error = answers.get()
        if error is not None:
            raise error
        if result.get_response().parameters["triton_final_response"].bool_param:
            return np.array([result.as_numpy(name).item() for name in COUNTS])


def measure(client, answers, options, drafts, prompts):
    inputs = {"max_tokens": options.tokens, "ignore_eos": True, "return_perf_metrics": True, "stream": options.stream}
    inputs["num_draft_tokens"] = drafts
    began, counts = time.monotonic(), np.zeros(2, int)
    for prompt in prompts:
        counts += ask(client, answers, options.model, {"text_input": prompt, **inputs})
    rate = len(prompts) * options.tokens / (time.monotonic() - began)
    print(f"{drafts} drafts a round: {rate:5.0f} tokens/s, {counts[1]} of {counts[0]} accepted", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--model", default="tensorrt_llm_bls")
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 1, 2, 3, 4, 0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--stream", action="store_true")
    options = parser.parse_args()
    text = HELDOUT.read_text(encoding="utf-8")
    step = len(text) // (options.prompts + 1)
    prompts = [text[index * step : index * step + CHARACTERS] for index in range(options.prompts)]
    answers = queue.SimpleQueue()
    with grpc.InferenceServerClient(options.url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        measure(client, answers, options, 0, prompts[:4])  # warm
        for drafts in options.drafts:
            measure(client, answers, options, drafts, prompts)
        client.stop_stream()


if __name__ == "__main__":
    main()
