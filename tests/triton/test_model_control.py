"""Models loaded and unloaded while the server runs, and configurations that must be refused without harm."""

import shutil

import pytest

from served import PROMPT, becomes, changed

ENGINE = "tensorrt_llm"
MODEL_BYTES = 14 << 20  # weights of python-7m
ROUNDS = 12


@pytest.fixture(scope="module")
def managed(start):
    """Nothing is loaded at the start. The server keeps a record of every load that failed while an older model served,
    and waits for these at its end as long as it may."""
    arguments = ["--model-control-mode=explicit", "--exit-timeout-secs=2"]
    with start(arguments=arguments, stats_check_period_ms=20) as served:
        yield served


def is_ready(managed, model=ENGINE):
    return managed.get(f"/v2/models/{model}/ready").status == 200


@pytest.fixture(scope="module")
def config(managed):
    """Of the engine model, as the server gives it."""
    assert managed.load().status == 200
    return managed.config()


@pytest.fixture
def loaded(managed, config, greedy):
    """With the engine model loaded; afterwards it must load and answer again."""
    assert managed.load(config=config).status == 200
    yield managed
    assert managed.server.exit_code is None
    assert managed.load(config=config).status == 200
    (response,) = managed.ask_tokens([5, 6, 7])
    assert response.tokens == greedy([5, 6, 7])


REFUSED = {
    "no path": ({"gpt_model_path": "${engine_dir}"}, "parameter gpt_model_path is '${engine_dir}'; wanted the folder"),
    "missing path": ({"gpt_model_path": "/nowhere"}, "gpt_model_path is '/nowhere', which does not exist"),
    "no type": ({"gpt_model_type": "${batching_strategy}"}, "Invalid gpt_model_type: found '${batching_strategy}'"),
    "type": ({"gpt_model_type": "dynamic"}, "Invalid gpt_model_type: found 'dynamic', wanted inflight_fused_batching"),
    "number": ({"max_num_tokens": "many"}, "parameter max_num_tokens is 'many'; wanted a number from 1 to"),
    "range": ({"kv_cache_free_gpu_mem_fraction": "1.5"}, "is '1.5'; wanted a number from 0 to 1"),
    "flag": ({"enable_kv_cache_reuse": "maybe"}, "parameter enable_kv_cache_reuse is 'maybe'; wanted true or false"),
    "decoding mode": (
        {"decoding_mode": "best"},
        "parameter decoding_mode is 'best'; wanted top_k, top_p, top_k_top_p or",
    ),
    "beams": ({"max_beam_width": "999"}, "max_beam_width is 999, wanted 1 to 128"),
    "speculation": ({"decoding_mode": "eagle"}, "parameter decoding_mode is 'eagle', which this version does not"),
    "device": ({"device": "abacus"}, "abacus"),
    "block size": ({"kv_cache_block_size": "33"}, "33"),
    "old key": ({"worker_path": "/bin/true"}, "parameter worker_path is obsolete"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_configuration(loaded, config, case):
    parameters, text = REFUSED[case]
    answer = loaded.load(config=changed(config, **parameters))
    assert answer.status == 400
    assert text in answer.error
    assert loaded.get("/v2/health/live").status == 200


def test_metrics_survive_a_refused_configuration(loaded, config):
    """The server shares metrics of equal labels between the serving model and the refused one."""
    loaded.settle()
    before = loaded.sample('"iteration_counter"')
    for _ in range(3):
        assert loaded.load(config=changed(config, device="abacus")).status == 400
        loaded.ask_tokens([5, 6, 7], 4)
    loaded.shows(before + 12, '"iteration_counter"')


def test_folder_without_a_plan(loaded, config, tmp_path):
    answer = loaded.load(config=changed(config, gpt_model_path=str(tmp_path)))
    assert answer.status == 400
    assert "plan.json" in answer.error
    assert str(tmp_path) in answer.error


def test_damaged_plan(loaded, config, tmp_path):
    shutil.copytree(loaded.engine_dir, tmp_path / "engine")
    plan = tmp_path / "engine" / "plan.json"
    plan.write_text(plan.read_text()[:1000])
    answer = loaded.load(config=changed(config, gpt_model_path=str(tmp_path / "engine")))
    assert answer.status == 400
    assert "plan.json" in answer.error


def test_no_parameters(loaded, config):
    answer = loaded.load(config={**config, "parameters": {}})
    assert answer.status == 400
    assert "the model configuration has no parameters section" in answer.error


def test_wrongly_declared_tensor(loaded, config):
    outputs = [{**it, "data_type": "TYPE_INT64"} if it["name"] == "output_ids" else it for it in config["output"]]
    answer = loaded.load(config={**config, "output": outputs})
    assert answer.status == 400
    assert "output output_ids of the model configuration is INT64; wanted INT32" in answer.error


@pytest.mark.parametrize(
    "parameters",
    [
        {"gpt_model_type": "V1"},
        {"batch_scheduler_policy": "max_utilization", "enable_chunked_context": "TRUE"},
        {"batch_scheduler_policy": "whatever", "decoding_mode": "top_k"},
        {"enable_kv_cache_reuse": "0", "max_tokens_in_paged_kv_cache": "512"},
        {"tensor_parallel_size": "2", "num_threads": "2"},
    ],
)
def test_accepted_configuration(loaded, config, greedy, parameters):
    assert loaded.load(config=changed(config, **parameters)).status == 200
    (response,) = loaded.ask_tokens([5, 6, 7], 20)
    assert response.tokens == greedy([5, 6, 7], 20)


def test_default_of_the_model_for_input_in_output(loaded, config, greedy):
    assert loaded.load(config=changed(config, exclude_input_in_output="false")).status == 200
    (response,) = loaded.ask_tokens([5, 6, 7], 4)
    assert response.tokens == [5, 6, 7, *greedy([5, 6, 7], 4)]


def test_random_seed_by_default(loaded, config):
    assert loaded.load(config=changed(config, random_default_seed="true")).status == 200
    samples = {tuple(loaded.ask_tokens([5], 12, runtime_top_k=500, temperature=2.0)[0].tokens) for _ in range(4)}
    assert len(samples) > 1


def test_unload_with_requests_running(loaded, greedy, prompts):
    """Running requests get their whole answer; later ones are refused."""
    streams = [loaded.stream_tokens(prompt[:40], 150, streaming=True) for prompt in prompts[:6]]
    for stream in streams:
        stream.next()
    assert loaded.unload().status == 200
    assert not is_ready(loaded)
    text = loaded.refusal("tensorrt_llm", input_ids=[5], input_lengths=1, request_output_len=2)
    assert "Request for unknown model: 'tensorrt_llm'" in text
    for prompt, stream in zip(prompts[:6], streams, strict=False):
        with stream:
            tokens = [token for response in stream for token in response.tokens]
        assert tokens == greedy(prompt[:40], 150)[1:]


def test_reload_with_requests_running(loaded, config, greedy, prompts):
    with loaded.stream_tokens(prompts[0][:40], 150, streaming=True) as stream:
        stream.next()
        assert loaded.load(config=changed(config, max_batch_size="3")).status == 200
        (response,) = loaded.ask_tokens(prompts[1])
        assert response.tokens == greedy(prompts[1])
        assert [token for it in stream for token in it.tokens] == greedy(prompts[0][:40], 150)[1:]
    loaded.shows(3, '"max"', "request_metrics")


def test_memory_comes_back_after_unload(loaded, config):
    """The KV pool is mapped at load and touched as it fills, so the mapped bytes tell that it has gone. New threads of
    the server map some, too, but nothing like the pool."""
    pool = 4 << 30
    fields = changed(config, kv_cache_cpu_memory_bytes=str(pool), kv_cache_free_gpu_mem_fraction="1.0")
    for _ in range(3):
        assert loaded.load(config=fields).status == 200
        loaded.ask_tokens([5, 6, 7], 20)
        mapped = loaded.server_address_space()
        assert mapped > pool
        assert loaded.unload().status == 200
        becomes(True, lambda: loaded.is_gone())
        becomes(True, lambda mapped=mapped: loaded.server_address_space() < mapped - pool / 2)


def test_weights_come_back_after_unload(loaded, config):
    """The allocator may keep pages in some rounds; a leak is a model in each, two in any two rounds."""
    sizes = []
    while len(sizes) < 3 or sizes[-1] - sizes[-3] >= MODEL_BYTES:
        assert len(sizes) < ROUNDS, sizes
        assert loaded.load(config=config).status == 200
        loaded.ask_tokens([5, 6, 7], 20)
        assert loaded.unload().status == 200
        becomes(True, lambda: loaded.is_gone())
        sizes.append(loaded.server_memory())


def test_memory_stays_flat_over_reloads(loaded, config):
    """A reload has the old and the new model at once for a moment; refused ones in between leave nothing behind.
    Seven leaks of a model, and of a refused one, would be 196 MiB."""

    def reload(size):
        assert loaded.load(config=changed(config, max_batch_size=str(size))).status == 200
        assert loaded.load(config=changed(config, kv_cache_block_size="33")).status == 400
        loaded.ask_tokens([5, 6, 7], 20)
        return loaded.server_memory()

    most = max(reload(size) for size in (2, 3, 4))
    for size in range(5, 12):
        reload(size)
    becomes(True, lambda: loaded.server_memory() < most + 4 * MODEL_BYTES)
    loaded.shows(11, '"max"', "request_metrics")


def test_whole_chain_loaded_on_demand(loaded, greedy_text):
    assert loaded.load("ensemble").status == 200
    assert loaded.text() == greedy_text(PROMPT)
    assert loaded.load("tensorrt_llm_bls").status == 200
    assert loaded.text("tensorrt_llm_bls") == greedy_text(PROMPT)
    for model in ("ensemble", "tensorrt_llm_bls", "preprocessing", "postprocessing"):
        assert loaded.unload(model).status == 200


def test_tokenizer_that_is_missing(loaded):
    body = loaded.get("/v2/models/tensorrt_llm/config")
    assert body.status == 200
    assert loaded.load("preprocessing").status == 200
    config = loaded.get("/v2/models/preprocessing/config").json
    answer = loaded.load("preprocessing", changed(config, tokenizer_dir="/nowhere"))
    assert answer.status == 400
    assert "tokenizer_dir '/nowhere'" in answer.error
