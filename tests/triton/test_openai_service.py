"""The OpenAI service beside a server: streams left early, a full queue, and the ends of either."""

import asyncio
import subprocess
import sys
from contextlib import aclosing
from random import Random

import openai
import pytest

from inflight.openai.engine import Engine, Order
from inflight.serve.locate import PACKAGE
from inflight.serve.server import Ports
from openai_service import by_choice, running
from served import ENDLESS, PATIENCE_S, PROMPT

MODEL = "python-7m"
CHAT = [{"role": "user", "content": PROMPT}]


async def leave_early(url, count):
    """Orders whose readers go at any moment: before the request is sent, between pieces, just before the end."""
    random, engine = Random(1), Engine(url, "tensorrt_llm")

    async def read(order):
        async with aclosing(engine.answer(order)) as pieces:
            async for _ in pieces:
                pass

    async def begin_and_leave(order):
        reading = asyncio.create_task(read(order))
        await asyncio.sleep(random.random() * 0.2)
        reading.cancel()
        await asyncio.wait({reading})

    await asyncio.gather(*(begin_and_leave(Order([5, 6, 7], random.randrange(1, 30))) for _ in range(count)))
    await engine.close()


def test_answers_left_early_do_not_hold_the_server(start):
    """Server 2.51 never unloads a model whose streams were cancelled at the wrong moment, and has to be killed."""
    with start() as served:
        for _ in range(4):
            asyncio.run(leave_early(served.server.grpc_url, 50))
        served.wait_until_idle()
        served.server.stop(PATIENCE_S)
    assert served.server.exit_code == 0


def test_a_full_queue_is_429(start, long_engine_dir, tmp_path):
    with (
        start(engine=long_engine_dir, max_queue_size=2, max_batch_size=1) as served,
        running(served.server.grpc_url, tmp_path / "log") as full,
    ):
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": ENDLESS, "stream": True, "ignore_eos": True}
        waiting = [full.connect("/v1/completions", body) for _ in range(8)]
        served.wait_until_active(3)
        assert full.ask("/v1/completions", {**body, "max_tokens": 4}).status == 429
        for connection in waiting:
            connection.close()
        served.wait_until_idle()


def test_the_end_lets_answers_finish(served, tmp_path, greedy_text):
    with running(served.server.grpc_url, tmp_path / "log") as service:
        fields = {"model": MODEL, "prompt": PROMPT, "max_tokens": 200, "temperature": 0, "stream": True}
        stream = iter(service.client().completions.create(**fields))
        text = next(stream).choices[0].text
        service.terminate()
        text += "".join(chunk.choices[0].text for chunk in stream)
        assert service.process.wait(timeout=PATIENCE_S) == 0
    assert text == greedy_text(PROMPT, 200)


def test_a_server_that_ends_is_503(start, long_engine_dir, tmp_path):
    with (
        start(engine=long_engine_dir) as served,
        running(served.server.grpc_url, tmp_path / "log", "--name", "mine") as service,
    ):
        fields = dict(model="mine", prompt=PROMPT, max_tokens=ENDLESS, stream=True, extra_body={"ignore_eos": True})
        stream = iter(service.client().completions.create(**fields))
        next(stream)
        served.server.process.kill()
        with pytest.raises(openai.APIError):
            list(stream)
        assert service.ask("/health").status == 503
        with pytest.raises(openai.InternalServerError) as refused:
            service.client().completions.create(model="mine", prompt="x", max_tokens=1)
        assert refused.value.status_code == 503
        assert "Traceback" not in service.log.read_text()


def test_models_without_streaming_answer_whole(single, tmp_path, greedy_text):
    with running(single.server.grpc_url, tmp_path / "log") as service:
        answer = service.client().completions.create(model=MODEL, prompt=PROMPT, max_tokens=9, temperature=0)
        assert answer.choices[0].text == greedy_text(PROMPT, 9)
        chunks = service.client().completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=9, temperature=0, stream=True
        )
        assert by_choice(chunks) == {0: (greedy_text(PROMPT, 9), "length")}


def test_serve_starts_it_beside_the_server(python_7m, greedy_text):
    ports, port = Ports.free(), Ports.free().http
    numbers = [f"--{kind}-port={getattr(ports, kind)}" for kind in ("http", "grpc", "metrics")]
    command = ["-m", "inflight", "serve", str(python_7m), "--openai", f"--openai-port={port}", *numbers]
    process = subprocess.Popen([sys.executable, *command], cwd=PACKAGE.parent, stdout=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stdout.readline, "")
        assert next(line for line in lines if "OpenAI" in line).split() == [
            "OpenAI",
            f"http://127.0.0.1:{port}/v1",
            "model",
            MODEL,
        ]
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, temperature=0)
        assert answer.choices[0].text == greedy_text(PROMPT)
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 0
