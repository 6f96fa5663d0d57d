"""The README's Python blocks run as they stand (against the tests' server and model)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import pytest

from inflight.serve.server import Ports
from served import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tools")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_has_the_blocks_that_are_tested():
    assert ["tritonclient" in block for block in BLOCKS] == [True, False]


def test_grpc_streaming_client(served, greedy_text):
    printed = run(BLOCKS[0].replace("localhost:8001", served.server.grpc_url))
    assert printed == greedy_text("def add(a, b):", 32)


def test_python_executor():
    pieces = [eval(line) for line in run(BLOCKS[1]).splitlines()]
    assert [len(piece) for piece in pieces] == [1] * 32


def test_deployment_by_hand(tmp_path, python_7m, greedy_text):
    """The shell block, on the demo model and free ports, up to an answer of the server that it starts."""
    script = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    ports = Ports.free()
    python, root = quote(sys.executable), quote(str(ROOT))
    launch = f"--host 127.0.0.1 --http_port {ports.http} --grpc_port {ports.grpc} --metrics_port {ports.metrics}"
    for old, new in {
        "inflight build path/to/checkpoint": f"{python} -m inflight build {quote(str(python_7m))}",
        "engines/mine": str(tmp_path / "engine"),
        "-r model_repo_templates models": f"-r {root}/model_repo_templates {tmp_path}/models",
        "python tools/": f"{python} {root}/tools/",
        "-i models/": f"-i {tmp_path}/models/",
        "--model_repo models": f"--model_repo {tmp_path}/models --force {launch}",
    }.items():
        assert old in script
        script = script.replace(old, new)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tools")}
    shell = subprocess.Popen(["bash", "-ec", script], cwd=tmp_path, env=environment, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{ports.http}/v2"
        assert shell.wait(timeout=PATIENCE_S) == 0
        wait_until(lambda: answers(f"{url}/health/ready"))
        body = json.dumps({"text_input": "def add(a, b):", "max_tokens": 8}).encode()
        for model in ("ensemble", "inflight_text"):
            with urllib.request.urlopen(f"{url}/models/{model}/generate", body) as answer:
                assert json.load(answer)["text_output"] == "def add(a, b):" + greedy_text("def add(a, b):")
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        wait_until(lambda: not answers(f"{url}/health/live"))


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("command", re.findall(r"`inflight (\w+)", (ROOT / "README.md").read_text()))
def test_commands_of_the_readme_exist(command):
    assert "usage: inflight " + command in run(f"from inflight.cli import main; main(['{command}', '--help'])")
