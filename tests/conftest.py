"""Shared fixtures: the demo models, their text, and prompts cut from it."""

from pathlib import Path

import numpy as np
import pytest

DEMO_MODELS = Path(__file__).parent / "demo_model"


@pytest.fixture(scope="session")
def python_7m() -> Path:
    return DEMO_MODELS / "python-7m"


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
