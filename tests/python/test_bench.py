"""inflight bench in this process: loads, measurements, random-weight models, plot."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints import make_gpt2, make_llama
from inflight import _executor, cli, plan
from inflight.bench import loads, offline, plot, shapes
from inflight.bench.measure import Measurement, Timeline, summarize
from inflight.bench.workload import Workload, draw_lengths
from inflight.errors import InflightError
from inflight.executor import Executor

draws_weights = pytest.mark.skipif(
    not hasattr(_executor.ExecutorConfig(), "random_weights"), reason="this build's executor cannot draw random weights"
)


@pytest.fixture(scope="module")
def executor(python_7m):
    with Executor(python_7m, kv_cache_enable_block_reuse=False) as shared:
        yield shared


def bench(*arguments: object) -> int:
    return cli.main(["bench", *map(str, arguments)])


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Loads


def test_lengths(tmp_path):
    file = tmp_path / "lengths"
    file.write_text("7\n300\n12\n")
    generator = np.random.default_rng(5)
    assert draw_lengths("128", 3, generator) == [128] * 3
    assert draw_lengths(str(file), 5, generator) == [7, 300, 12, 7, 300]
    uniform = draw_lengths("uniform:3-6", 400, generator)
    assert set(uniform) == {3, 4, 5, 6}
    normal = draw_lengths("normal:50,30", 2000, generator)
    assert min(normal) >= 1
    assert abs(np.mean(normal) - 50) < 4
    assert 24 < np.std(normal) < 33


@pytest.mark.parametrize("text", ["", "x", "0", "-3", "uniform:5", "uniform:9-2", "normal:50", "/nowhere"])
def test_bad_lengths_are_refused(text):
    with pytest.raises(InflightError, match="lengths"):
        draw_lengths(text, 4, np.random.default_rng())


def test_an_empty_file_of_lengths_is_refused(tmp_path):
    (tmp_path / "empty").write_text("")
    with pytest.raises(InflightError, match="lengths"):
        draw_lengths(str(tmp_path / "empty"), 4, np.random.default_rng())


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,32", [1, 32]),
        ("1,2,4,...,64", [1, 2, 4, 8, 16, 32, 64]),
        ("1,2,4,...,100", [1, 2, 4, 8, 16, 32, 64, 100]),
        ("8,16,...,32", [8, 16, 32]),
        ("10,20,30,...,60", [10, 20, 30, 40, 50, 60]),
        ("0.5", [0.5]),
    ],
)
def test_lists_with_dots(text, numbers):
    assert loads.expand(text) == numbers


@pytest.mark.parametrize(
    "text", ["", "a", "...,4", "4,...,8", "4,2,...,1", "1,2,...", "1,2,...,4,8", "1,1,...,4", "0,1,...,4"]
)
def test_bad_lists_are_refused(text):
    with pytest.raises(InflightError, match="list"):
        loads.expand(text)


def test_cases_and_sweeps():
    cases = loads.parse_cases("128,64,1024; 2048,128,256;")
    assert [(load.input_lengths, load.output_lengths, load.requests) for load in cases] == [
        ("128", "64", 1024),
        ("2048", "128", 256),
    ]
    varied = loads.vary(cases, loads.parse_sweep("rate=1,2"))
    assert [(load.requests, load.rate) for load in varied] == [(1024, 1.0), (1024, 2.0), (256, 1.0), (256, 2.0)]
    for parse, text in ((loads.parse_cases, "128,64"), (loads.parse_cases, "a,b,c"), (loads.parse_sweep, "batch=1,2")):
        with pytest.raises(InflightError, match="wanted"):
            parse(text)


def test_a_seed_repeats_lengths_and_arrivals_but_never_prompts():
    load = loads.Load("uniform:5-90", "normal:20,5", 500, rate=20.0)
    workload, again, other = load.draw(3), load.draw(3), load.draw(4)
    assert workload == again != other
    assert workload.prompts(1000) != again.prompts(1000)
    gaps = np.diff(workload.arrivals)
    assert gaps.min() >= 0
    assert 0.8 < gaps.mean() * 20 < 1.2
    assert 0.8 < gaps.std() * 20 < 1.2  # of an exponential distribution the deviation is the mean


@pytest.mark.parametrize("concurrency", [None, 3, 7])
def test_parts_are_the_whole(concurrency):
    workload = Workload(tuple((n, n + 1) for n in range(1, 12)), concurrency, tuple(map(float, range(11))))
    parts = [workload.part(index, 3) for index in range(3)]
    assert sorted(length for part in parts for length in part.lengths) == sorted(workload.lengths)
    assert sorted(arrival for part in parts for arrival in part.arrivals) == list(workload.arrivals)
    if concurrency is not None:
        assert sum(part.concurrency for part in parts) == concurrency


# Measurements


def test_summary_of_a_run():
    workload = Workload(((10, 5), (30, 1)), concurrency=2)
    timelines = [Timeline(100.0, 100.5, 102.5, tokens=5), Timeline(100.0, 101.5, 101.5, tokens=1)]
    row = summarize(workload, Measurement(timelines, seconds=4.0, steps=8))
    assert row == {
        "isl": 20, "osl": 3, "n": 2, "concurrency": 2, "s": 4.0, "out_tok_s": 1.5, "total_tok_s": 11.5,
        "ms_per_tok": 1333.333, "ttft_ms_mean": 1000.0, "ttft_ms_p50": 1500.0, "ttft_ms_p99": 1500.0,
        "tpot_ms_mean": 500.0, "tpot_ms_p50": 500.0, "tpot_ms_p99": 500.0, "steps": 8, "step_ms": 500.0,
    }  # fmt: skip


def most_at_a_time(timelines: list[Timeline]) -> int:
    events = sorted([(it.sent, 1) for it in timelines] + [(it.last, -1) for it in timelines])
    return int(np.cumsum([change for _, change in events]).max())


@pytest.mark.parametrize("concurrency", [1, 3])
def test_offline_holds_the_concurrency(executor, concurrency):
    workload = Workload(((20, 9), (5, 12), (31, 4)) * 4, concurrency)
    done = []
    measured = offline.run(executor, workload, lambda: done.append(1))
    assert [it.tokens for it in measured.timelines] == [output for _, output in workload.lengths]
    assert len(done) == 12
    assert all(it.sent < it.first <= it.last for it in measured.timelines)
    assert max(it.last for it in measured.timelines) - min(it.sent for it in measured.timelines) < measured.seconds
    assert most_at_a_time(measured.timelines) == concurrency
    if concurrency == 1:
        assert measured.steps == sum(output for _, output in workload.lengths)


def test_all_at_once_shares_steps(executor):
    measured = offline.run(executor, Workload(((8, 200),) * 16))
    assert 200 <= measured.steps < 16 * 200 / 4


def test_requests_arrive_by_the_clock(executor):
    arrivals = (0.0, 0.05, 0.06, 0.3)
    measured = offline.run(executor, Workload(((8, 4),) * 4, arrivals=arrivals))
    sent = [it.sent - measured.timelines[0].sent for it in measured.timelines]
    assert sent == pytest.approx(arrivals, abs=1e-9)
    assert measured.seconds > 0.3


def test_a_refused_request_ends_the_run(executor):
    with pytest.raises(InflightError, match="2000 tokens"):
        offline.run(executor, Workload(((8, 4), (2000, 4))))


# The command


def test_cases_from_the_command_line(python_7m, tmp_path, capsys):
    limits = tmp_path / "limits.jsonl"
    limits.write_text(
        '{"copy_TBs": 1.0}\nnoise\n{"read_TBs": 0.05}\n{"m": 16, "bf16_TF": 1.0}\n{"m": 64, "bf16_TF": 2}\n'
    )
    file = tmp_path / "rows.jsonl"
    assert bench(python_7m, "--cases", "16,8,6;30,4,2", "--json", file, "--limits", limits) == 0
    first, second = rows_of(file)
    wanted = dict(engine="inflight", model="python-7m", quant=None, kv="auto", tp=1, isl=16, osl=8, n=6)
    assert wanted.items() <= first.items()
    assert (second["isl"], second["osl"], second["n"], second["concurrency"]) == (30, 4, 2, None)
    assert first["out_tok_s"] == pytest.approx(48 / first["s"], rel=0.1)
    assert first["total_tok_s"] == pytest.approx(3 * first["out_tok_s"], rel=1e-3)
    assert 0 < first["share_of_limit"] < 1
    assert first["limit"] == "read"
    assert 0 < first["tpot_ms_p50"] <= first["tpot_ms_p99"]
    assert first["step_ms"] == pytest.approx(1e3 * first["s"] / first["steps"], rel=0.1)
    shown = capsys.readouterr()
    assert "output tok/s" in shown.out
    assert "16/8 x 6" in shown.err


def test_json_on_standard_output_stands_alone(python_7m, capsys):
    assert bench(python_7m, "--cases", "8,4,2", "--json", "-") == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "share_of_limit" not in row  # the machine's limits were not given


def test_settings_reach_the_executor(python_7m, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    common = ("--cases", "8,10,8", "--json", file)
    assert bench(python_7m, *common) == bench(python_7m, *common, "--max-batch-size", 1) == 0
    together, alone = rows_of(file)
    assert alone["steps"] == 80 > together["steps"]
    assert bench(python_7m, "--set", "nonsense=1") == 1
    assert "unknown executor setting 'nonsense'" in capsys.readouterr().err
    assert bench(python_7m, "--set", "nonsense") == 1


def test_sweep_draws_a_plot(python_7m, tmp_path):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    picture, file = tmp_path / "plot.svg", tmp_path / "rows.jsonl"
    lengths = ("--input-lengths", "uniform:4-20", "--output-lengths", 6)
    assert bench(python_7m, *lengths, "--sweep", "concurrency=1,2,...,8", "--plot", picture, "--json", file) == 0
    assert [row["concurrency"] for row in rows_of(file)] == [1, 2, 4, 8]
    assert "<svg" in picture.read_text()
    again = tmp_path / "again.png"
    plot.main(str(file), str(again))
    assert again.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InflightError, match="plot.xyz"):
        plot.draw(rows_of(file), tmp_path / "plot.xyz")


def test_a_plot_without_matplotlib_is_refused_before_measuring(python_7m, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert bench(python_7m, "--plot", tmp_path / "plot.svg", "--json", tmp_path / "rows.jsonl") == 1
    assert "inflight[plot]" in capsys.readouterr().err
    assert not (tmp_path / "rows.jsonl").exists()


# Models by name


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_a_plan_without_weights_is_that_of_the_checkpoint(tmp_path, make):
    checkpoint = make(tmp_path / "checkpoint", torch.bfloat16)
    config = json.loads((checkpoint / "config.json").read_text())
    wanted = plan.read(plan.build(checkpoint, tmp_path / "engine"))
    found = plan.read(plan.build_without_weights(config, tmp_path / "without"))
    assert found["checkpoint"].pop("directory") == "."
    wanted["checkpoint"].pop("directory")
    assert without_prefix(found) == without_prefix(wanted)


def without_prefix(document: dict) -> dict:
    """transformers stores a bare GPT-2 with or without its optional prefix."""
    for weight in document["weights"].values():
        for source in weight["sources"]:
            source["tensor"] = source["tensor"].removeprefix("transformer.")
    return document


@pytest.mark.parametrize(
    ("name", "parameters"), [("llama3-8b", 8.030e9), ("llama3-1b", 1.236e9), ("llama2-70b", 68.977e9)]
)
def test_published_sizes(tmp_path, name, parameters):
    network = plan.read(shapes.build(name, tmp_path / name))["network"]
    assert network["dtype"] == "bfloat16"
    assert network["num_parameters"] == pytest.approx(parameters, rel=1e-3)


def test_a_name_without_its_family_is_unsupported(capsys):
    assert bench("mixtral-8x7b") == 1
    assert "mixtral-8x7b" in (text := capsys.readouterr().err)
    assert "not supported" in text


def test_an_unknown_name_lists_the_known_ones(capsys):
    assert bench("llama9-1b") == 1
    assert "llama3-8b" in capsys.readouterr().err


def test_an_executor_that_draws_no_weights_is_told(monkeypatch, capsys):
    monkeypatch.setattr(_executor, "ExecutorConfig", object)
    assert bench("llama-tiny") == 1
    assert "llama-tiny has no weights" in capsys.readouterr().err


def test_build_by_name(tmp_path, capsys):
    assert cli.main(["build", "llama-tiny", "-o", str(tmp_path / "engine")]) == 0
    assert plan.read(tmp_path / "engine")["network"]["num_layers"] == 2
    assert cli.main(["build", "llama-tiny", "-o", str(tmp_path / "engine")]) == 1
    assert "--force" in capsys.readouterr().err


@draws_weights
def test_a_random_weight_model_answers(tmp_path):
    file = tmp_path / "rows.jsonl"
    assert bench("llama-tiny", "--device", "cpu", "--cases", "300,20,8", "--json", file) == 0
    (row,) = rows_of(file)
    assert row["model"] == "llama-tiny"
    assert row["out_tok_s"] * row["s"] == pytest.approx(160, rel=0.05)


@draws_weights
def test_random_weights_give_varied_tokens():
    """Weights of zeros or without scale would give one token over and over, or no numbers."""
    with shapes.engine_folder("llama-tiny") as engine, Executor(engine, device="cpu", random_weights=True) as executor:
        from inflight.executor import Request

        answers = [executor.generate(Request([5 + n, 60, 9], max_tokens=8)) for n in range(12)]
    assert len({token for answer in answers for token in answer}) > 3
