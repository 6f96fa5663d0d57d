"""inflight generate ENGINE --prompt TEXT: the Python executor in the terminal, streaming."""

import argparse
import sys
import time
from pathlib import Path

from inflight.detokenizer import TextStream
from inflight.executor import CAPACITY_POLICIES, Executor, ExecutorError, Request
from inflight.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine folder or Hugging Face checkpoint")
    parser.add_argument("--prompt", required=True, help="text to continue; - reads standard input")
    parser.add_argument("--max-tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=1.0, help="with --top-k, --top-p or --min-p; else greedy")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=0.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop behind this text; repeatable")
    parser.add_argument("--ignore-eos", action="store_true", help="go on behind the end token")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--pipeline-parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: the processors available")
    parser.add_argument("--capacity-policy", choices=list(CAPACITY_POLICIES), default="guaranteed_no_evict")


def run(args: argparse.Namespace) -> int:
    tokenizer = Tokenizer.from_folder(args.engine)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    request = Request(
        input_ids=tokenizer.encode(prompt),
        max_tokens=args.max_tokens,
        streaming=True,
        end_id=None if args.ignore_eos else tokenizer.end_id,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=args.seed,
        repetition_penalty=args.repetition_penalty,
        stop_words=[tokenizer.encode(text, add_special_tokens=False) for text in args.stop],
    )
    config = dict(
        tensor_parallel=args.tensor_parallel,
        pipeline_parallel=args.pipeline_parallel,
        num_threads=args.threads,
        capacity_policy=args.capacity_policy,
    )
    with Executor(args.engine, **config) as executor:
        return stream(executor, request, prompt, tokenizer)


def stream(executor: Executor, request: Request, prompt: str, tokenizer: Tokenizer) -> int:
    print(prompt, end="", flush=True)
    text = TextStream(tokenizer)
    count, first, start = 0, 0.0, time.perf_counter()
    handle = executor.submit(request)
    try:
        for result in handle:
            first = first or time.perf_counter() - start
            count += len(result.tokens)
            print(text.push(result.tokens, end=result.final), end="", flush=True)
    except KeyboardInterrupt:
        handle.cancel()
    except ExecutorError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - start
    print(f"\n[{count} tokens, first after {first * 1e3:.1f} ms, {count / seconds:.0f} tokens/s]", file=sys.stderr)
    return 0
