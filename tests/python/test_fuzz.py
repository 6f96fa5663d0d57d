"""A short run of the fuzz program; `make fuzz` runs the long one with sanitizers."""

import re
import subprocess
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "build/tests/fuzz_tests"
TARGETS = 12


def test_random_input_is_served_or_refused():
    run = subprocess.run(
        [PROGRAM, "--cases", "2000", "--seed", "20"], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.findall(r"^\w+ +(\d+) cases, +(\d+) refused, 0 findings$", run.stdout, re.MULTILINE)
    assert len(found) == TARGETS, run.stdout
    assert sum(int(cases) for cases, _ in found) > 10_000
    # Both ways are taken: what is refused by all and what is refused by none tests nothing.
    assert all(int(refused) < int(cases) for cases, refused in found)


def test_a_target_that_is_not_there_is_an_error():
    run = subprocess.run([PROGRAM, "--target", "nothing"], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
