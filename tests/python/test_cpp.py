"""Every case of the C++ test programs as a test of its own, so that one run gives one summary."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = [ROOT / "build/tests" / f"{room}_tests" for room in ("kernels", "batcher", "faults", "triton")]
CUDA_PROGRAM = ROOT / "build/tests/cuda_tests"  # there where nvcc is


def parse_listing(listing: str) -> list[str]:
    """Suite.Case of each case in the text of --gtest_list_tests, where cases stand indented under their suite."""
    cases = []
    suite = ""
    for line in listing.splitlines():
        name = line.split("#")[0].rstrip()
        if name.startswith("  "):
            cases.append(suite + name.strip())
        elif name.endswith("."):
            suite = name
    return cases


def list_cases(program: Path) -> list[str]:
    if not program.is_file():
        raise pytest.UsageError(f"no test program at {program}: run `make build` first")
    listing = subprocess.run([program, "--gtest_list_tests"], capture_output=True, text=True, check=True).stdout
    cases = parse_listing(listing)
    if not cases:
        raise pytest.UsageError(f"{program} lists no tests")
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"program", "case"} <= set(metafunc.fixturenames):
        programs = PROGRAMS + [CUDA_PROGRAM] * CUDA_PROGRAM.is_file()
        pairs = [(program, case) for program in programs for case in list_cases(program)]
        metafunc.parametrize(("program", "case"), pairs, ids=[f"{p.stem}:{case}" for p, case in pairs])


def test_case(program: Path, case: str):
    command = [program, f"--gtest_filter={case}", "--gtest_brief=1"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout
    if program == CUDA_PROGRAM and "SKIPPED" in run.stdout:
        pytest.skip("no CUDA device")
    assert "1 test" in run.stdout or "SKIPPED" in run.stdout, f"{case} did not run: {run.stdout}"


def test_listing_is_parsed():
    listing = "Running main() from file.cc\nA.\n  One\n  Two\nB/C.\n  Three/0  # GetParam() = 5\n"
    assert parse_listing(listing) == ["A.One", "A.Two", "B/C.Three/0"]
