"""The least time of a workload, against sums by hand over every step, sequence, query and key."""

import io
import json

import numpy as np
import pytest

import tiny_network
from inflight import plan
from inflight.bench import limits, shapes
from inflight.bench.batcher import Bounds, StepWork, steps_of
from inflight.bench.costs import costs_of, work_of
from inflight.bench.limits import Machine, least_time, machine_of, read_machine
from inflight.bench.shapes import SHAPES
from inflight.bench.workload import Workload
from inflight.errors import InflightError


def random_workload(seed: int, concurrency: int | None = None) -> Workload:
    generator = np.random.default_rng(seed)
    return Workload(tuple(map(tuple, generator.integers(1, 40, (23, 2)).tolist())), concurrency)


@pytest.mark.parametrize("seed", range(6))
def test_every_token_is_computed_once_and_the_bounds_hold(seed):
    concurrency, bounds = [(None, Bounds(7, 16)), (3, Bounds(50, 9, 90)), (None, Bounds(100, 1000, 200))][seed % 3]
    workload = random_workload(seed, concurrency)
    cached_totals: list[int] = []
    computed = sampled = 0
    for step in steps_of(workload, bounds):
        assert 0 < step.computed.sum() <= bounds.max_num_tokens
        assert len(step.computed) <= min(bounds.max_batch_size, concurrency or 100)
        assert (step.computed > 0).all()
        cached_totals.append(int((step.cached + step.computed).sum()))
        computed += step.computed.sum()
        sampled += step.sampled.sum()
    assert computed == sum(inputs + outputs - 1 for inputs, outputs in workload.lengths)
    assert sampled == sum(outputs for _, outputs in workload.lengths)
    assert bounds.kv_tokens is None or max(cached_totals) <= bounds.kv_tokens


def test_steps_of_one_request_and_of_a_split_prompt():
    (step, *following) = steps_of(Workload(((5, 3),)), Bounds(4, 100))
    assert (step.cached.tolist(), step.computed.tolist(), step.sampled.tolist()) == ([0], [5], [True])
    assert [it.cached.tolist() for it in following] == [[5], [6]]
    chunks = [it.computed.tolist() for it in steps_of(Workload(((5, 1), (5, 2))), Bounds(4, 4))]
    assert chunks == [[4], [1, 3], [2], [1]]


def brute_force(costs, step: StepWork, window: int) -> tuple[int, int]:
    """(keys read from the cache, pairs of a query and a key) of one layer."""
    keys = sum(min(int(cached), window) for cached in step.cached)
    pairs = sum(
        min(int(cached) + i + 1, window)
        for cached, computed in zip(step.cached, step.computed, strict=True)
        for i in range(int(computed))
    )
    return keys, pairs


def test_costs_of_a_llama(tmp_path):
    """By the shapes alone, with a head that is not tied."""
    plan_of = plan.read(plan.build_without_weights(SHAPES["llama-tiny"], tmp_path))
    costs = costs_of(plan_of)
    hidden, mlp, layers, kv, vocabulary = 64, 160, 2, 2 * 16, 256
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp
    norms = (2 * layers + 1) * hidden
    assert costs.weight_bytes == 2 * (layers * layer + vocabulary * hidden + norms)
    assert costs.token_operations == 2 * layers * layer
    assert costs.sampled_operations == 2 * vocabulary * hidden
    step = StepWork(np.array([0, 9, 30]), np.array([7, 1, 4]), np.array([True, True, False]))
    keys, pairs = brute_force(costs, step, 1 << 40)
    size, operations = work_of(costs, step)
    assert size == costs.weight_bytes + keys * layers * 2 * kv * 2
    assert operations == 12 * 2 * layers * layer + 2 * 2 * vocabulary * hidden + pairs * layers * 4 * hidden


def test_a_tied_head_is_read_too(tmp_path):
    untied, tied = (
        costs_of(plan.read(plan.build_without_weights(SHAPES["llama-tiny"] | tie, tmp_path / str(tie))))
        for tie in ({"tie_word_embeddings": False}, {"tie_word_embeddings": True})
    )
    assert untied == tied


def test_a_window_bounds_keys_and_pairs(tmp_path):
    """tiny_network: half of its four layers see 3 keys, half see all; 2 heads of 8, 1 of them with keys and values."""
    costs = costs_of(plan.read(plan.build_without_weights({}, tmp_path, dtype="F32", define=tiny_network.define)))
    step = StepWork(np.array([0, 1, 2, 5, 11]), np.array([6, 3, 1, 4, 1]), np.array([True] * 5))
    bare = StepWork(np.zeros(0, int), np.zeros(0, int), np.zeros(0, bool))
    size, operations = (a - b for a, b in zip(work_of(costs, step), work_of(costs, bare), strict=True))
    operations -= costs.token_operations * 15 + costs.sampled_operations * 5
    (near_keys, near_pairs), (keys, pairs) = brute_force(costs, step, 3), brute_force(costs, step, 1 << 40)
    assert size == (near_keys + keys) * 2 * 2 * 8 * 4
    assert operations == (near_pairs + pairs) * 2 * 4 * 2 * 8


def test_each_step_takes_the_longer_of_both(tmp_path):
    costs = costs_of(plan.read(plan.build_without_weights(SHAPES["llama-tiny"], tmp_path)))
    workload, bounds = random_workload(1), Bounds(8, 64)
    works = np.array([work_of(costs, step) for step in steps_of(workload, bounds)], float)
    machine = Machine(read_bandwidth=np.median(works[:, 0] / works[:, 1]), matrix_rate=1.0)
    times = works / [machine.read_bandwidth, machine.matrix_rate]
    least = least_time(costs, machine, workload, bounds)
    assert least.seconds == pytest.approx(times.max(1).sum())
    assert times.max(1).sum() > max(times.sum(0)) * 1.001  # else the maximum over steps would not show
    reading = least_time(costs, Machine(read_bandwidth=2.0), workload, bounds)
    assert (reading.seconds, reading.binds) == (pytest.approx(works[:, 0].sum() / 2), "read")
    assert least_time(costs, Machine(matrix_rate=2.0), workload, bounds).binds == "matrix"
    halved = least_time(costs, machine.times(2), workload, bounds)
    assert halved.seconds == pytest.approx(least.seconds / 2)
    assert reading.share(2 * reading.seconds) == {"share_of_limit": 0.5, "limit": "read"}


def test_no_share_without_limits_or_when_arrivals_set_the_pace(tmp_path):
    costs = costs_of(plan.read(plan.build_without_weights(SHAPES["llama-tiny"], tmp_path)))
    workload = Workload(((4, 2),), arrivals=(0.1,))
    assert least_time(costs, Machine(), Workload(((4, 2),)), Bounds(1, 8)) is None
    assert least_time(costs, Machine(1.0, 1.0), workload, Bounds(1, 8)) is None


def test_machine_from_a_file_and_from_arguments(tmp_path):
    file = tmp_path / "limits.jsonl"
    file.write_text('text\n{"read_TBs": 4.3}\n{"bf16_TF": 650.0, "m": 8}\n{"bf16_TF": 700.5}\n{"copy_TBs": 9}\n')
    assert read_machine(file) == Machine(4.3e12, 700.5e12)
    assert machine_of(2.0, None, file) == Machine(2e12, 700.5e12)
    assert machine_of(None, None, None) == Machine()
    (tmp_path / "other").write_text('{"copy_TBs": 9}\n')
    with pytest.raises(InflightError, match="read_TBs"):
        read_machine(tmp_path / "other")
    (tmp_path / "broken").write_text('{"read_TBs"\n')
    with pytest.raises(InflightError, match="JSON"):
        read_machine(tmp_path / "broken")


def test_rows_of_another_engine_get_their_share(tmp_path, monkeypatch, capsys):
    file = tmp_path / "limits.jsonl"
    file.write_text('{"read_TBs": 4.0, "bf16_TF": 700.0}\n')
    row = {"engine": "other", "model": "llama-tiny", "tp": 1, "isl": 9, "osl": 4, "n": 3, "s": 1e-6}
    lines = ["a log line", json.dumps({"event": "load", "model": "llama-tiny"}), json.dumps(row)]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    limits.main(str(file), "2", "8")
    log, event, shared = capsys.readouterr().out.splitlines()
    assert [log, event] == lines[:2]
    costs = costs_of(plan.read(shapes.build("llama-tiny", tmp_path / "engine")))
    least = least_time(costs, Machine(4e12, 700e12), Workload(((9, 4),) * 3), Bounds(2, 8))
    assert json.loads(shared) == row | {"share_of_limit": round(least.seconds * 1e6, 4), "limit": "read"}
