"""The README's Python blocks run as they stand (against the tests' server and model)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tools")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_has_the_blocks_that_are_tested():
    assert ["tritonclient" in block for block in BLOCKS] == [True, False]


def test_grpc_streaming_client(served, greedy_text):
    printed = run(BLOCKS[0].replace("localhost:8001", served.server.grpc_url))
    assert printed == greedy_text("def add(a, b):", 32)


def test_python_executor():
    pieces = [eval(line) for line in run(BLOCKS[1]).splitlines()]  # noqa: S307: our own output, lists of numbers
    assert [len(piece) for piece in pieces] == [1] * 32


@pytest.mark.parametrize("command", re.findall(r"`inflight (\w+)", (ROOT / "README.md").read_text()))
def test_commands_of_the_readme_exist(command):
    assert "usage: inflight " + command in run(f"from inflight.cli import main; main(['{command}', '--help'])")
