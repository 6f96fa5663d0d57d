"""The metrics of our own (inflight_*), the dashboard that draws them, and the contract's check of the old families."""

import json
import re
import time
from pathlib import Path

import pytest

from served import ENDLESS, becomes

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "backend/grafana.json").read_text())
# What the scripts of the old backend accept as categories.
CATEGORIES = (
    "active max scheduled context waiting cpu gpu pinned free used tokens_per reused fraction kv_cache_transfer_ms "
    "request_count total_context_tokens generation_requests micro_batch_id paused_requests timestamp iteration_counter"
)


def own_metrics(served):
    """name{le} -> value, of the engine model"""
    found = {}
    for key, value in served.metrics().items():
        if key.startswith("inflight_"):
            name, labels = re.fullmatch(r"(\w+)\{(.*)\}", key).groups()
            labels = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            assert (labels.pop("model"), labels.pop("version")) == ("tensorrt_llm", "1")
            assert set(labels) <= {"le"}, key
            found[name, labels.get("le")] = float(value)
    return found


def grown(served, before, counter):
    """By how much each metric is more, once `counter` is by one: they are shown a moment after the answer."""
    becomes(before[counter, None] + 1, lambda: own_metrics(served)[counter, None])
    served.settle()
    now = own_metrics(served)
    return {key[0]: now[key] - value for key, value in before.items() if key[1] is None}


@pytest.mark.parametrize("streaming", [True, False])
def test_tokens_and_latencies(served, heldout_ids, streaming):
    served.settle()
    before = own_metrics(served)
    prompt = heldout_ids[2000:2050] if streaming else heldout_ids[3000:3050]  # known to no other test
    began = time.monotonic()
    served.ask_tokens(prompt, 40, streaming=streaming)
    took = time.monotonic() - began
    found = grown(served, before, "inflight_requests_completed_total")
    assert found["inflight_generated_tokens_total"] == 40
    assert found["inflight_prompt_tokens_total"] + found["inflight_prompt_tokens_reused_total"] == 50
    assert found["inflight_time_to_first_token_seconds_count"] == 1
    assert found["inflight_queue_time_seconds_count"] == 1
    assert found["inflight_inter_token_latency_seconds_count"] == 39
    first, queue, gaps = (
        found[f"inflight_{name}_seconds_sum"] for name in ("time_to_first_token", "queue_time", "inter_token_latency")
    )
    assert 0 < queue < first < took
    assert first + gaps < took
    assert gaps > 39e-5  # a step reads 14 MB of weights
    for name in ("requests_failed_total", "requests_cancelled_total", "preemptions_total", "queue_depth"):
        assert found[f"inflight_{name}"] == 0


def test_reused_prompt(served, heldout_ids):
    prompt = heldout_ids[4000:4100]
    served.ask_tokens(prompt, 1)
    served.settle()
    before = own_metrics(served)
    served.ask_tokens(prompt, 1)
    found = grown(served, before, "inflight_requests_completed_total")
    assert found["inflight_prompt_tokens_reused_total"] == 99
    assert found["inflight_prompt_tokens_total"] == 1
    assert 0 < own_metrics(served)["inflight_prefix_hit_rate", None] < 1


def test_draft_tokens(served, greedy, heldout_ids):
    prompt = heldout_ids[5000:5030]
    tokens = greedy(prompt, 20)
    drafts = [*tokens[:6], (tokens[6] + 1) % 4096, tokens[7]]
    served.settle()
    before = own_metrics(served)
    served.ask_tokens(prompt, 20, draft_input_ids=drafts)
    found = grown(served, before, "inflight_requests_completed_total")
    assert found["inflight_draft_tokens_total"] == 8
    assert found["inflight_draft_tokens_accepted_total"] == 6
    assert 0 < own_metrics(served)["inflight_draft_acceptance_rate", None] < 1


def test_cancelled_request(endless, prompts):
    before = own_metrics(endless)
    with endless.stream_tokens(prompts[0], ENDLESS, streaming=True) as stream:
        stream.next()
        stream.cancel()
    grown(endless, before, "inflight_requests_cancelled_total")


def test_contract_check(served, prompts):
    """What the old backend's own tests do with /metrics: the first label that begins with neither model nor version
    is the category, values are texts of integers, and no other family has the prefix."""
    began = time.time()
    served.ask_tokens(prompts[0], 4)
    served.settle()
    samples = {key: value for key, value in served.metrics().items() if "nv_trt_llm" in key}
    assert len(samples) == 22
    for key, value in samples.items():
        labels = re.findall(r'(\w+)="([^"]*)"', key)
        (category,) = [text for name, text in labels if not name.startswith(("model", "version"))]
        assert category in CATEGORIES.split(), key
        assert value.isdigit() or category == "timestamp", (key, value)
    assert began < served.sample('"timestamp"') / 1e6 < time.time()


def panels():
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_dashboard_names_what_the_server_shows(served, prompts, panel):
    served.ask_tokens(prompts[0], 2)
    names = {re.split(r"[{ ]", key)[0] for key in served.metrics()}
    used = {name for target in panel["targets"] for name in re.findall(r"\b(?:inflight|nv)_\w+", target["expr"])}
    assert used
    assert used <= names


def test_dashboard_shows_all_of_our_own(served):
    drawn = json.dumps(DASHBOARD)
    kinds = {re.sub(r"_(bucket|sum|count)$", "", name) for name, _ in own_metrics(served)}
    assert [name for name in sorted(kinds) if name not in drawn] == []
