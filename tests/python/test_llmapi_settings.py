"""model.yaml of the llmapi model: what is taken from it, and what is refused."""

import shutil

import pytest

from inflight.serve.llmapi_repository import TEMPLATE
from inflight.serve.llmapi_settings import SettingsError, check_model_config, read_settings
from inflight.serve.locate import find_templates


@pytest.fixture
def read(tmp_path):
    """read(text): the settings of a model.yaml; {folder} in it is a folder."""

    def settings(text, name="model.yaml", **environment):
        (tmp_path / name).write_text(text.replace("{folder}", str(tmp_path)))
        return read_settings(tmp_path, environment)

    return settings


def test_executor_settings(read, tmp_path):
    settings = read("""
model: {folder}
backend: tensorrt
tensor_parallel_size: 2
pipeline_parallel_size: 3
max_seq_len: 100
cuda_graph_config: {batch_sizes: [1]}
kv_cache_config: {free_gpu_memory_fraction: 0.5, max_attention_window: [8], dtype: auto}
triton_config: {max_batch_size: 0, decoupled: True, cancellation_check_period_ms: 20}
""")
    assert (settings.model, settings.tokenizer, settings.ranks) == (tmp_path, tmp_path, 6)
    assert settings.executor == {
        "tensor_parallel": 2,
        "pipeline_parallel": 3,
        "max_sequence_length": 100,
        "kv_cache_free_memory_fraction": 0.5,
        "kv_cache_attention_windows": [8],
    }
    assert (settings.decoupled, settings.cancellation_period_s) == (True, 0.02)
    assert settings.ignored == ("cuda_graph_config", "kv_cache_config.dtype")


def test_defaults(read):
    settings = read("model: {folder}\ntensor_parallel_size:\ntriton_config: {decoupled: '${decoupled_mode}'}\n")
    assert (settings.executor, settings.ranks, settings.ignored) == ({}, 1, ())
    assert (settings.decoupled, settings.cancellation_period_s) == (False, 0.1)


def test_file_named_by_the_environment(read, tmp_path):
    (tmp_path / "model.yaml").write_text("model: nowhere")
    assert read("model: {folder}", "other.yaml", LLM_CONFIG_PATH="other.yaml").model == tmp_path
    assert read("model: {folder}", "other.yaml", LLM_CONFIG_PATH=str(tmp_path / "other.yaml")).model == tmp_path
    with pytest.raises(SettingsError, match=r"absent\.yaml: .*No such file"):
        read("model: {folder}", LLM_CONFIG_PATH="absent.yaml")


def test_template_wants_its_model(tmp_path):
    shutil.copy(find_templates().with_name(TEMPLATE) / "tensorrt_llm/1/model.yaml", tmp_path)
    with pytest.raises(SettingsError, match="model is not set, wanted the folder of an engine or of a checkpoint"):
        read_settings(tmp_path, {})


REFUSED = {
    "": "holds nothing, wanted a mapping of settings",
    "- a": "holds a list, wanted a mapping of settings",
    "model: [": "model.yaml: while parsing",
    "model: no/such/folder": "model is 'no/such/folder', wanted a folder on this machine",
    "model: 3": "model is 3, wanted a folder on this machine",
    "{model: '{folder}', tokenizer: x}": "tokenizer is 'x', wanted a folder on this machine",
    "{model: '{folder}', tensor_parallel_size: 0}": "tensor_parallel_size is 0, wanted a number of at least 1",
    "{model: '{folder}', tensor_parallel_size: two}": "tensor_parallel_size is 'two', wanted a number",
    "{model: '{folder}', quant_config: {quant_algo: FP8}}": "quant_config is set, which is for quantization",
    "{model: '{folder}', logits_post_processors: {a: b}}": "logits_post_processors is set, which is for logits post-",
    "{model: '{folder}', kv_cache_config: 3}": "kv_cache_config is 3, wanted a mapping",
    "{model: '{folder}', triton_config: {max_batch_size: 8}}": "max_batch_size is 8, wanted 0: a request holds one",
    "{model: '{folder}', triton_config: {decoupled: maybe}}": "decoupled is 'maybe', wanted a value of type bool",
    "{model: '{folder}', triton_config: {decouple: true}}": "triton_config has decouple, wanted only max_batch_size, ",
    "{model: '{folder}', triton_config: {cancellation_check_period_ms: 0}}": "check_period_ms is 0, wanted at least 1",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals(read, text):
    with pytest.raises(SettingsError, match=REFUSED[text]):
        read(text)


def test_server_configuration(read):
    settings = read("{model: '{folder}', tensor_parallel_size: 2, triton_config: {decoupled: true}}")
    fitting = {"max_batch_size": 0, "model_transaction_policy": {"decoupled": True}, "instance_group": [{"count": 1}]}
    check_model_config(fitting, settings)
    ranks = {"parameters": {"tensor_parallel_size": {"string_value": "2"}}}
    check_model_config({**fitting, **ranks}, settings)
    ranks["parameters"]["tensor_parallel_size"]["string_value"] = "4"
    for change, text in (
        ({"model_transaction_policy": {}}, "config.pbtxt makes decoupled False, model.yaml True"),
        ({"max_batch_size": 8}, "config.pbtxt makes max_batch_size 8, model.yaml 0"),
        ({"instance_group": [{"count": 2}]}, "instance_group has 2 instances, wanted 1"),
        (ranks, "the server was started for 4 ranks, model.yaml has 2"),
    ):
        with pytest.raises(SettingsError, match=text):
            check_model_config({**fitting, **change}, settings)
