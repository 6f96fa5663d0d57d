"""A short soak of a live server, and that its judgement sees what is wrong."""

import asyncio
import random

import pytest

from inflight.soak.cases import draw_cases
from inflight.soak.clients import judge
from inflight.soak.run import Settings, soak
from inflight.soak.wire import Addresses, Piece
from served import PATIENCE_S

# Here, nobody cancels over gRPC: server 2.51 may crash when a stream is cancelled just as it ends (its issue 8034), and
# sometimes never releases a request whose client has left while the tokenizer or another model was at it.
LEAVING = {"disconnect": 0.2, "invalid": 0.1}
TOKEN_SHARES = {"stop": 0.1, **LEAVING}
TEXT_SHARES = {"ensemble": {"invalid": 0.1}, "tensorrt_llm_bls": LEAVING, "inflight_text": LEAVING}
TEXTS = ["def add(a, b):", "import os\n", "class A:\n    ", "for x in range(", 'print("']


def addresses(served):
    ports = served.server.ports
    return Addresses(*(f"127.0.0.1:{port}" for port in (ports.grpc, ports.http, ports.metrics)))


def require_clean(tally, kinds):
    assert tally.failed(most_growth=64 << 20) == [], tally.failures
    assert tally.of("right") == tally.total
    assert tally.total > 50
    assert {kind for kind, _ in tally.counts} == set(kinds)


def test_tokens(served):
    cases = draw_cases(24, 4096, 60, random.Random(5))
    settings = Settings(
        "tensorrt_llm", streams=60, seconds=8.0, patience_s=4 * PATIENCE_S, shares=TOKEN_SHARES, least=2
    )
    tally = asyncio.run(soak(settings, addresses(served), cases, served.server.pid))
    require_clean(tally, {"stream", "whole", *TOKEN_SHARES})


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "inflight_text"])
def test_text(served, model):
    rng = random.Random(6)
    cases = [
        type(case)(rng.choice(TEXTS), case.max_tokens, case.sampling)
        for case in draw_cases(10, 4096, 24, random.Random(6))
    ]
    shares = TEXT_SHARES[model]
    settings = Settings(model, streams=12, seconds=3.0, patience_s=4 * PATIENCE_S, shares=shares, least=6)
    require_clean(asyncio.run(soak(settings, addresses(served), cases)), {"stream", "whole", *shares})


EXPECTED = [1, 2, 3, 4]
END = Piece(None, final=True)
JUDGED = {
    "streamed": ([Piece([1]), Piece([2, 3]), Piece([4], final=True)], True, "right"),
    "empty final response": ([Piece([1, 2, 3, 4]), END], True, "right"),
    "left early": ([Piece([1]), Piece([2])], False, "right"),
    "nothing at all": ([], False, "right"),
    "no final response": ([Piece([1, 2, 3, 4])], True, "lost"),
    "nothing came": ([], True, "lost"),
    "token missing": ([Piece([1, 2, 4], final=True)], True, "wrong"),
    "end missing": ([Piece([1, 2, 3], final=True)], True, "wrong"),
    "wrong though left early": ([Piece([1]), Piece([3])], False, "wrong"),
    "token twice": ([Piece([1]), Piece([1])], False, "wrong"),
    "answer twice": ([Piece([1, 2, 3, 4]), Piece([1, 2, 3, 4], final=True)], True, "duplicated"),
    "two ends": ([Piece([1, 2, 3, 4], final=True), END], True, "duplicated"),
    "something after the end": ([Piece([1, 2], final=True), Piece([3, 4])], True, "duplicated"),
    "error": ([Piece([1]), Piece(None, error="the engine failed")], True, "wrong"),
    "full queue": ([Piece(None, error="Maximum queue size of 2 is reached")], True, "refused"),
}


@pytest.mark.parametrize("case", JUDGED)
def test_judgement(case):
    pieces, whole, verdict = JUDGED[case]
    assert judge(pieces, EXPECTED, whole)[0] == verdict
