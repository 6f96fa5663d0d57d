"""Shared fixtures: the demo models, their text, and prompts cut from it."""

import json
from pathlib import Path

import numpy as np
import pytest

DEMO_MODELS = Path(__file__).parent / "demo_model"


@pytest.fixture(scope="session")
def python_7m() -> Path:
    return DEMO_MODELS / "python-7m"


@pytest.fixture(scope="session")
def long_7m(python_7m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """python-7m with room for 16384 tokens. An answer of ENDLESS tokens takes a minute: what a test does while it runs
    is done in time, however often the machine lets the test wait."""
    folder = tmp_path_factory.mktemp("long") / "python-7m"
    folder.mkdir()
    for file in python_7m.iterdir():
        (folder / file.name).symlink_to(file.absolute())
    config = json.loads((python_7m / "config.json").read_text()) | {"max_position_embeddings": 16384}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def heldout_ids(python_7m: Path) -> list[int]:
    """The held-out text as tokens of the demo tokenizer."""
    from tokenizers import Tokenizer

    text = (DEMO_MODELS / "heldout.txt").read_text()
    return Tokenizer.from_file(str(python_7m / "tokenizer.json")).encode(text).ids


@pytest.fixture(scope="session")
def prompts(heldout_ids: list[int]) -> list[list[int]]:
    """64 prompts of 1 to 200 tokens; neighbours share beginnings, so that prefix reuse has something to find."""
    random = np.random.default_rng(11)
    starts = random.integers(0, len(heldout_ids) - 400, 48).tolist()
    starts += starts[:16]
    return [heldout_ids[start : start + int(random.integers(1, 200))] for start in starts]
