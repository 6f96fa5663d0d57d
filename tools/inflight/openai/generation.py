"""From a checked body to orders for the engine, and from its pieces to the deltas of all choices."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from inflight.detokenizer import TextStream
from inflight.openai import logprobs
from inflight.openai.choice import Choice, Delta
from inflight.openai.engine import Engine, Order, Piece
from inflight.openai.errors import ApiError, invalid
from inflight.openai.logprobs import TokenLogProb
from inflight.openai.model import ServedModel
from inflight.openai.requests import Body

WHOLE_PROMPT = 2**31 - 1  # OpenAI's presence and frequency penalties count what was generated alone


@dataclass(frozen=True)
class Echo:
    """A prompt that comes before its answers. top: as for Choice. only: the answers themselves are not wanted."""

    text: str
    top: int | None
    only: bool


@dataclass
class Task:
    """One order and the choices that it fills, by sequence."""

    order: Order
    choices: list[Choice]
    echo: Echo | None = None


@dataclass
class Job:
    """All that one HTTP request asks of the engine."""

    tasks: list[Task]

    @property
    def prompt_tokens(self) -> int:
        return sum(len(task.order.prompt) for task in self.tasks)

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for task in self.tasks for choice in task.choices)


def plan_job(
    body: Body, model: ServedModel, prompts: Sequence[Sequence[int]], top: int | None, echoes: Sequence[Echo] = ()
) -> Job:
    """top: likeliest tokens with each entry of the log probabilities; None: none are wanted. Raises ApiError."""
    _check_bias(body, model)
    sampling = _sampling(body, model)
    tasks = []
    for position, prompt in enumerate(prompts):
        model.check_length(len(prompt))
        echo = echoes[position] if echoes else None
        choices = _choices(body, model, prompt, top, position * body.choices)
        tasks.append(Task(_order(body, model, prompt, sampling, top, echo), choices, echo))
    return Job(tasks)


def _order(
    body: Body,
    model: ServedModel,
    prompt: Sequence[int],
    sampling: Mapping[str, float],
    top: int | None,
    echo: Echo | None,
) -> Order:
    return Order(
        prompt=prompt,
        max_tokens=1 if echo and echo.only else body.limit,
        sequences=body.choices,
        sampling=sampling,
        bias=body.logit_bias,
        vocabulary=model.vocabulary,
        stream=model.streams and bool(body.stream or body.stop),
        log_probs=top is not None,
        logits=bool(top),
        context_logits=echo is not None and top is not None,
    )


def _choices(body: Body, model: ServedModel, prompt: Sequence[int], top: int | None, first: int) -> list[Choice]:
    behind = prompt if body.continues_prompt else ()
    return [
        Choice(first + sequence, model.tokenizer, body.stop, top, body.skip_special_tokens, behind)
        for sequence in range(body.choices)
    ]


def _sampling(body: Body, model: ServedModel) -> dict[str, float]:
    """Inputs of the engine model. Sampling from the whole vocabulary has to be said: without any it is greedy."""
    given = {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "runtime_top_p": 1.0 if body.top_p is None else body.top_p,
        "runtime_top_k": None if body.top_k is None else max(body.top_k, 0),
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "prompt_ignore_length": WHOLE_PROMPT if body.presence_penalty or body.frequency_penalty else None,
        "repetition_penalty": body.repetition_penalty,
        "min_tokens": body.min_tokens,
        "seed": secrets.randbits(64) if body.seed is None else body.seed % 2**64,
        "end_id": model.tokenizer.end_id,
        "ignore_eos": body.ignore_eos,
    }
    return {name: value for name, value in given.items() if value is not None}


def _check_bias(body: Body, model: ServedModel) -> None:
    for token in body.logit_bias:
        if token >= model.vocabulary:
            raise invalid(f"token {token} is outside the vocabulary of {model.vocabulary} tokens", "logit_bias")


async def deltas(engine: Engine, job: Job) -> AsyncGenerator[Delta, None]:
    """Leaving it early ends everything at the engine. Raises ApiError."""
    sources = [_of_task(engine, task) for task in job.tasks]
    source = sources[0] if len(sources) == 1 else _merged(sources)
    async with aclosing(source):
        async for delta in source:
            yield delta


async def _of_task(engine: Engine, task: Task) -> AsyncGenerator[Delta, None]:
    if task.echo and task.echo.only and task.echo.top is None:  # there is nothing to ask
        for delta in _echoed(task, []):
            yield delta
        return
    running = len(task.choices)
    is_first = True
    async with aclosing(engine.answer(task.order)) as pieces:
        async for piece in pieces:
            if is_first and task.echo:
                for delta in _echoed(task, await _prompt_entries(task, piece)):
                    yield delta
            is_first = False
            running -= bool(piece.finish_reason)
            choice = task.choices[piece.sequence]
            if not choice.finished and (delta := choice.push(piece)):
                yield delta
            if running and all(it.finished for it in task.choices):
                return  # stop strings were found: what the engine still does is for nothing
    if not all(choice.finished for choice in task.choices):
        raise ApiError(503, "the answer was broken off by the server", "server_error")


def _echoed(task: Task, entries: Sequence[TokenLogProb]) -> list[Delta]:
    begun = [choice.start_behind(task.echo.text, entries) for choice in task.choices]
    if task.echo.only:
        for choice, delta in zip(task.choices, begun, strict=True):
            choice.finished = True
            delta.finish_reason = "length"
    return begun


async def _prompt_entries(task: Task, piece: Piece) -> list[TokenLogProb]:
    if task.echo.top is None or piece.context_logits is None:
        return []
    text = TextStream(task.choices[0].tokenizer)
    offsets = [0]
    for token in task.order.prompt:
        offsets.append(offsets[-1] + len(text.push([token])))
    return await asyncio.to_thread(logprobs.of_prompt, task.order.prompt, piece.context_logits, task.echo.top, offsets)


async def _merged(sources: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """Whatever comes first. The first error ends them all."""
    queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue(maxsize=len(sources))
    pumping = asyncio.create_task(_pump_all(sources, queue))
    try:
        while (found := await queue.get()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)


async def _pump_all(sources: Sequence[AsyncGenerator[Delta, None]], queue: asyncio.Queue) -> None:
    """Puts what the sources give, then None or the error that ended them."""
    tasks = [asyncio.create_task(_pump(source, queue)) for source in sources]
    try:
        await asyncio.gather(*tasks)
        await queue.put(None)
    except Exception as error:
        await queue.put(error)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(source: AsyncGenerator[Delta, None], queue: asyncio.Queue) -> None:
    async with aclosing(source):
        async for delta in source:
            await queue.put(delta)
