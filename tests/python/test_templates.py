"""The templates hold every tensor and parameter of the contract, and load when only the needed variables are filled."""

import re

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from inflight.serve.llmapi_repository import TEMPLATE
from inflight.serve.locate import find_templates
from inflight.serve.repository import fill_repository
from inflight.serve.template import fill, unparsable_variables
from template_contract import (
    DRAFT_INPUTS,
    ENGINE_INPUTS,
    ENGINE_OUTPUTS,
    ENSEMBLE_INPUTS,
    ENSEMBLE_OUTPUTS,
    LLMAPI_INPUTS,
    LLMAPI_OUTPUTS,
    PARAMETERS,
    PYTHON_TENSORS,
    TEXT_INPUTS,
    VISION_INPUTS,
)

MODELS = ("ensemble", "inflight_text", "preprocessing", "postprocessing", "tensorrt_llm", "tensorrt_llm_bls")
FILLED = {"triton_max_batch_size": "8", "decoupled_mode": "True"}


@pytest.fixture(scope="module")
def texts():
    return {model: (find_templates() / model / "config.pbtxt").read_text() for model in MODELS}


@pytest.fixture(scope="module")
def configs(texts):
    """Parsed, with nothing filled in but what has no default."""
    return {
        model: text_format.Parse(
            fill(text, {k: v for k, v in FILLED.items() if k in text}), model_config_pb2.ModelConfig()
        )
        for model, text in texts.items()
    }


def rows(tensors, flags=False):
    """name -> "TYPE [dims]", with flags O(ptional), R(eshape to scalar), G (ragged)."""
    described = {}
    for it in tensors:
        text = f"{model_config_pb2.DataType.Name(it.data_type)[5:]} {list(it.dims)}"
        marks = ""
        if flags:
            marks = "O" * it.optional + "R" * it.HasField("reshape") + "G" * it.allow_ragged_batch
        described[it.name] = f"{text} {marks}".strip()
    return described


def contract(table):
    """Lines "name TYPE [dims] flags" to the same mapping."""
    pairs = (line.split(None, 1) for line in table.strip().splitlines())
    return {name: re.sub(r"\s+", " ", rest).replace(",", ", ") for name, rest in pairs}


def test_engine_inputs(configs):
    assert rows(configs["tensorrt_llm"].input, flags=True) == contract(ENGINE_INPUTS)


def test_engine_outputs(configs):
    assert rows(configs["tensorrt_llm"].output) == contract(ENGINE_OUTPUTS)


def test_llmapi_tensors():
    text = (find_templates().with_name(TEMPLATE) / "tensorrt_llm/config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert rows(config.input, flags=True) == contract(LLMAPI_INPUTS)
    assert rows(config.output) == contract(LLMAPI_OUTPUTS)
    assert config.max_batch_size == 0 and not config.HasField("model_transaction_policy"), "model.yaml says them"


@pytest.mark.parametrize("model", PYTHON_TENSORS)
def test_python_model_tensors(configs, model):
    inputs, outputs = PYTHON_TENSORS[model]
    assert rows(configs[model].input, flags=True) == contract(inputs)
    assert rows(configs[model].output) == contract(outputs)


@pytest.mark.parametrize("model", ["ensemble", "inflight_text", "tensorrt_llm_bls"])
def test_text_model_tensors(configs, model):
    inputs = rows(configs[model].input, flags=True)
    expected = contract(ENSEMBLE_INPUTS)
    more = {
        "ensemble": (),
        "inflight_text": (TEXT_INPUTS, DRAFT_INPUTS),
        "tensorrt_llm_bls": (VISION_INPUTS, DRAFT_INPUTS),
    }
    for tensors in more[model]:
        expected |= contract(tensors)
    assert inputs == expected
    assert rows(configs[model].output) == contract(ENSEMBLE_OUTPUTS)


@pytest.mark.parametrize("model", PARAMETERS)
def test_parameters(configs, model):
    found = {key: value.string_value for key, value in configs[model].parameters.items()}
    expected = {}
    for word in PARAMETERS[model].split():
        key, _, variable = word.partition("=")
        expected[key] = variable if variable in ("no", "0") else f"${{{variable or key}}}"
    assert found == expected


def test_each_parameter_is_declared_once(texts):
    for model, text in texts.items():
        keys = re.findall(r'parameters: \{ key: "(\w+)"', text)
        assert len(keys) == len(set(keys)), model


def test_batching(configs):
    for model in MODELS:
        assert configs[model].max_batch_size == 8
        assert not configs[model].HasField("dynamic_batching")  # server 2.51 crashes with it under load
    for model in ("inflight_text", "tensorrt_llm", "tensorrt_llm_bls"):
        assert configs[model].model_transaction_policy.decoupled
    for model in set(MODELS) - {"ensemble"}:
        group = configs[model].instance_group[0]
        assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)


def test_one_postprocessing_instance_whatever_is_asked_for(texts):
    """Several would let the chunks of a stream overtake each other."""
    text = fill(texts["postprocessing"], {"triton_max_batch_size": "8", "postprocessing_instance_count": "4"})
    (group,) = text_format.Parse(text, model_config_pb2.ModelConfig()).instance_group
    assert group.count == 1


def test_ensemble_wires_existing_tensors(configs):
    known = set(rows(configs["ensemble"].input))
    for step in configs["ensemble"].ensemble_scheduling.step:
        model = configs[step.model_name]
        assert set(step.input_map) <= set(rows(model.input)), step.model_name
        assert set(step.output_map) <= set(rows(model.output)), step.model_name
        assert set(step.input_map.values()) <= known, step.model_name
        known |= set(step.output_map.values())
    assert set(rows(configs["ensemble"].output)) <= known


def test_every_ensemble_input_goes_somewhere(configs):
    used = {name for step in configs["ensemble"].ensemble_scheduling.step for name in step.input_map.values()}
    assert set(rows(configs["ensemble"].input)) <= used


def test_filled_repository_parses(tmp_path):
    folder = fill_repository(tmp_path / "models", tmp_path / "engine", tmp_path / "tokenizer", max_num_tokens=64)
    for model in MODELS:
        text = (folder / model / "config.pbtxt").read_text()
        assert not unparsable_variables(text)
        text_format.Parse(text, model_config_pb2.ModelConfig())
        assert (folder / model / "1").is_dir()
    engine = (folder / "tensorrt_llm/config.pbtxt").read_text()
    assert f'key: "gpt_model_path" value: {{ string_value: "{tmp_path}/engine" }}' in engine
    assert 'key: "max_num_tokens" value: { string_value: "64" }' in engine
    assert 'backend: "inflight"' in engine
