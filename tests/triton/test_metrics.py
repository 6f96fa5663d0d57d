"""/metrics and the statistics: the contract's families and labels, and numbers that count."""

import json
import re
import shutil
import time

import pytest

from served import ENDLESS, TEXT_MODELS, becomes

FAMILIES = {
    "nv_trt_llm_request_metrics": ("request_type", "active max scheduled context waiting"),
    "nv_trt_llm_runtime_memory_metrics": ("memory_type", "cpu gpu pinned"),
    "nv_trt_llm_kv_cache_block_metrics": ("kv_cache_block_type", "max free used tokens_per reused fraction"),
    "nv_trt_llm_disaggregated_serving_metrics": ("disaggregated_serving_type", "kv_cache_transfer_ms request_count"),
    "nv_trt_llm_inflight_batcher_metrics": (
        "inflight_batcher_specific_metric",
        "total_context_tokens generation_requests micro_batch_id paused_requests",
    ),
    "nv_trt_llm_general_metrics": ("general_type", "timestamp iteration_counter"),
}
LINE_KEYS = 22  # as many as samples


def own_samples(served):
    """(family, labels) -> text of the value"""
    samples = {}
    for key, value in served.metrics().items():
        if key.startswith("nv_trt_llm"):
            family, labels = re.fullmatch(r"(\w+)\{(.*)\}", key).groups()
            samples[family, tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels)))] = value
    return samples


def test_families_and_labels(served):
    expected = {
        (family, tuple(sorted([("model", "tensorrt_llm"), ("version", "1"), (label, category)])))
        for family, (label, categories) in FAMILIES.items()
        for category in categories.split()
    }
    assert set(own_samples(served)) == expected
    assert len(expected) == LINE_KEYS


def test_idle_values_are_integers(served):
    served.wait_until_idle()
    for (family, labels), value in own_samples(served).items():
        if ("general_type", "timestamp") not in labels:
            assert value.isdigit(), (family, labels, value)


def test_gauges_move_with_a_request(endless, prompts):
    began = time.time()

    def blocks_add_up():
        blocks = {
            dict(labels)["kv_cache_block_type"]: int(value)
            for (family, labels), value in own_samples(endless).items()
            if family == "nv_trt_llm_kv_cache_block_metrics" and value.isdigit()
        }
        return blocks["used"] > 0 and blocks["max"] == blocks["used"] + blocks["free"]

    with endless.stream_tokens(prompts[0][:20], ENDLESS, streaming=True) as stream:
        stream.next()
        endless.shows(1, '"generation_requests"')
        assert endless.sample('"active"') == 1
        becomes(True, blocks_add_up)  # a scrape may come between two samples of a step
        stream.cancel()
    endless.wait_until_idle()
    assert began < endless.sample('"timestamp"') / 1e6 < time.time()


def test_iterations_are_counted(served, prompts):
    served.settle()
    before = served.sample('"iteration_counter"')
    served.ask_tokens(prompts[0], 20)
    served.shows(before + 20, '"iteration_counter"')


@pytest.mark.parametrize("kind", ["input", "output"])
def test_length_histograms(served, heldout_ids, kind):
    def observed():
        name = f"nv_llm_{kind}_token_len"
        buckets = {le: served.sample(f"{name}_bucket", f'le="{le}"') for le in ("10", "50", "100", "500", "1000")}
        return served.sample(f"{name}_count"), served.sample(f"{name}_sum"), buckets

    count, total, buckets = observed()
    served.ask_tokens(heldout_ids[100:160], 60)
    assert observed() == (count + 1, total + 60, {le: n + (int(le) >= 60) for le, n in buckets.items()})


def statistics_of(served):
    (answer,) = served.get("/v2/models/tensorrt_llm/stats").json["model_stats"]
    return answer


def test_request_statistics(served, prompts):
    before = statistics_of(served)
    began = time.monotonic_ns()
    served.ask_tokens(prompts[0], 50)
    served.ask_tokens(prompts[0], 50, streaming=True)
    took = time.monotonic_ns() - began
    served.refusal("tensorrt_llm", input_ids=[5], input_lengths=1, request_output_len=0)
    after = statistics_of(served)
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["execution_count"] == before["execution_count"] + 2

    def grown(kind, number):
        return after["inference_stats"][kind][number] - before["inference_stats"][kind][number]

    assert (grown("success", "count"), grown("fail", "count")) == (2, 1)
    assert 0 < grown("compute_infer", "ns") < grown("success", "ns") < took
    # First and last response only: a table as long as the longest answer serves nobody.
    assert len(after["response_stats"]) <= 2


def test_parts_of_a_request_are_its_whole_time(served, prompts):
    """But for what the machine makes it wait between two parts: on a busy one, not every request is without that."""

    def covered():
        before = statistics_of(served)["inference_stats"]
        served.ask_tokens(prompts[0], 50)
        after = statistics_of(served)["inference_stats"]
        took = {kind: after[kind]["ns"] - before[kind]["ns"] for kind in after}
        return sum(took[f"compute_{kind}"] for kind in ("input", "infer", "output")) + took["queue"], took["success"]

    becomes(True, lambda: (times := covered())[0] == pytest.approx(times[1], rel=0.05))


def test_success_and_failure_counters(served, prompts):
    success = served.sample("nv_inference_request_success")
    failure = served.sample("nv_inference_request_failure", 'reason="BACKEND"')
    served.ask_tokens(prompts[0])
    served.refusal("tensorrt_llm", input_ids=[5], input_lengths=1, request_output_len=0)
    assert served.sample("nv_inference_request_success") == success + 1
    served.shows(failure + 1, "nv_inference_request_failure", 'reason="BACKEND"')
    assert served.sample("nv_inference_count") > 0
    for name in ("request", "compute_infer"):
        assert served.sample(f"nv_inference_{name}_duration_us") > 0


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_text_models_have_statistics(served, model):
    served.settle()
    before = served.sample("nv_inference_request_success", model=model)
    served.text(model)
    served.shows(
        before + 1, "nv_inference_request_success", model=model
    )  # python models are counted after their answer


def test_statistics_line_of_the_verbose_log(start):
    """One key for each sample of our families; the last line shows what /metrics shows."""
    with start(arguments=["--log-verbose=3"], edit=remove_text_models, stats_check_period_ms=20) as served:
        served.ask_tokens([5, 6, 7], 10)
        served.settle()
        samples = own_samples(served)
        log = served.server.log.read_text()
    line = json.loads(re.findall(r"\{.*Active Request Count.*\}", log)[-1].replace('\\"', '"'))
    assert len(line) == len(samples) == LINE_KEYS
    assert re.fullmatch(r"\d\d-\d\d-\d{4} \d\d:\d\d:\d\d\.\d+", line.pop("Timestamp"))
    assert all(isinstance(value, int) for value in line.values()), line
    assert line["Iteration Counter"] == 10
    assert sorted(map(str, line.values())) == sorted(
        value for (_, labels), value in samples.items() if ("general_type", "timestamp") not in labels
    )


def remove_text_models(repository):
    for model in repository.iterdir():
        if model.name != "tensorrt_llm":
            shutil.rmtree(model)
