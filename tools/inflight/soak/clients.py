"""The kinds of clients, and the judgement of what each of them got."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc

from inflight.soak.cases import ENGINE_MODEL, Case, message, refused
from inflight.soak.wire import Piece, Wire

# Share of each kind; those that are left stay to the end.
SHARES = {"cancel": 0.20, "disconnect": 0.10, "invalid": 0.05, "stop": 0.05}
KINDS = ("stream", "whole", *SHARES)
VERDICTS = ("right", "refused", "lost", "duplicated", "wrong")
QUEUE_FULL = "Maximum queue size"
LONGEST_STAY_S = 2.0  # of a client that leaves early, should it have got nothing until then
_ids = itertools.count()


@dataclass(frozen=True)
class Outcome:
    """`verdict`: right; refused (queue full); lost (no end came); duplicated (something after the end, or more than was
    asked for); wrong (another content than the same request alone gets, or no error where one is due)."""

    kind: str
    verdict: str
    detail: str = ""
    pieces: int = 0


@dataclass
class Client:
    """Sends one request after the other, of kinds and cases drawn at random."""

    wire: Wire
    model: str
    cases: Sequence[tuple[Case, list[int] | str]]  # with what the server answers to each alone
    rng: random.Random
    patience_s: float
    shares: dict[str, float] = field(default_factory=lambda: SHARES)

    async def ask(self) -> Outcome:
        case, expected = self.rng.choice(self.cases)
        kind = self._draw_kind()
        try:
            verdict, detail, pieces = await getattr(self, f"_{kind}")(case, expected)
        except asyncio.TimeoutError:
            return Outcome(kind, "lost", f"nothing for {self.patience_s:.0f} s")
        except (grpc.aio.AioRpcError, OSError, EOFError) as error:
            return Outcome(kind, "lost", repr(error))
        return Outcome(kind, verdict, detail, pieces)

    def _draw_kind(self) -> str:
        point = self.rng.random()
        for kind, share in self.shares.items():
            point -= share
            if point < 0 and (kind != "stop" or self.model == ENGINE_MODEL):
                return kind
        return "stream" if self.rng.random() < 0.8 else "whole"

    async def _stream(self, case: Case, expected: list[int] | str) -> tuple[str, str, int]:
        return judge(await self._read(self.wire.stream(message(self.model, case, True))), expected)

    async def _whole(self, case: Case, expected: list[int] | str) -> tuple[str, str, int]:
        return judge(await self._read(self.wire.stream(message(self.model, case, False))), expected)

    async def _cancel(self, case: Case, expected: list[int] | str) -> tuple[str, str, int]:
        return await self._leave(self.wire.stream(message(self.model, case, True)), case, expected)

    async def _disconnect(self, case: Case, expected: list[int] | str) -> tuple[str, str, int]:
        return await self._leave(self.wire.events(message(self.model, case, True)), case, expected)

    async def _leave(self, stream: AsyncIterator[Piece], case: Case, expected: list[int] | str) -> tuple[str, str, int]:
        pieces = await self._read(stream, self.rng.randint(0, case.max_tokens), LONGEST_STAY_S)
        return judge(pieces, expected, whole=False)

    async def _invalid(self, case: Case, expected: list[int] | str) -> tuple[str, str, int]:
        wrong = refused(self.model, message(self.model, case, True), self.rng)
        pieces = await self._read(self.wire.stream(wrong))
        if len(pieces) == 1 and pieces[0].error:
            return "right", "", 0
        return "wrong", f"{len(pieces)} responses and no error to {wrong.tensors}", len(pieces)

    async def _stop(self, case: Case, expected: list[int] | str) -> tuple[str, str, int]:
        request_id = f"soak {next(_ids)}"
        order = message(self.model, Case((0,), 1), False).with_tensors(stop=("BOOL", True))
        stay, pieces = self.rng.randint(1, case.max_tokens), []
        async with aclosing(self.wire.stream(message(self.model, case, True), request_id)) as stream:
            async for piece in _patient(stream, self.patience_s):
                pieces.append(piece)
                if len(pieces) == stay:
                    answers = await self._read(self.wire.stream(order, request_id))
                    if [(it.content, it.final, it.error) for it in answers] != [(None, True, "")]:
                        return "wrong", f"a stop order was answered by {answers}", len(pieces)
        verdict = judge(pieces, expected, whole=False)
        return verdict if pieces[-1].final or verdict[0] != "right" else ("lost", "no final response", len(pieces))

    async def _read(
        self, stream: AsyncIterator[Piece], most: int | None = None, seconds: float | None = None
    ) -> list[Piece]:
        """The responses, up to `most` of them or until `seconds` are over; then the client leaves."""
        pieces: list[Piece] = []
        end = None if seconds is None else time.monotonic() + seconds
        async with aclosing(stream):
            try:
                async for piece in _patient(stream, self.patience_s if end is None else seconds):
                    pieces.append(piece)
                    if (most is not None and len(pieces) >= most) or (end is not None and time.monotonic() > end):
                        break
            except asyncio.TimeoutError:
                if end is None:
                    raise
        return pieces


async def _patient(stream: AsyncIterator[Piece], seconds: float) -> AsyncIterator[Piece]:
    """Raises TimeoutError when nothing comes for so long."""
    while True:
        try:
            yield await asyncio.wait_for(anext(stream), seconds)
        except StopAsyncIteration:
            return


def judge(pieces: list[Piece], expected: list[int] | str, whole: bool = True) -> tuple[str, str, int]:
    """Verdict, what is wrong, number of pieces. `whole`: the client stayed to the end."""
    count = len(pieces)
    errors = [piece.error for piece in pieces if piece.error]
    if errors:
        return ("refused" if QUEUE_FULL in errors[0] else "wrong"), errors[0], count
    content = type(expected)()
    for piece in pieces:
        content += piece.content if piece.content is not None else type(expected)()
    finals = [index for index, piece in enumerate(pieces) if piece.final]
    if len(finals) > 1 or (finals and finals[0] != count - 1):
        return "duplicated", f"final responses {finals} of {count}", count
    if content != expected[: len(content)]:
        longer = content[: len(expected)] == expected
        return ("duplicated" if longer else "wrong"), f"{content} in the place of {expected}", count
    if whole and not finals:
        return "lost", f"{count} responses, none of them final", count
    if whole and content != expected:
        return "wrong", f"{content} in the place of {expected}", count
    return "right", "", count


async def reference(wire: Wire, model: str, cases: Sequence[Case]) -> list[tuple[Case, list[int] | str]]:
    """What the server answers to each case when nothing else is asked. Raises ValueError for an error of the server."""
    answers = []
    for case in cases:
        pieces = [piece async for piece in wire.stream(message(model, case, False))]
        errors = [piece.error for piece in pieces if piece.error]
        if errors:
            raise ValueError(f"model {model} refuses a valid request: {errors[0]}")
        answers.append((case, next(piece.content for piece in pieces if piece.content is not None)))
    return answers
