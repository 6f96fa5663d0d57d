"""Inverse frequencies equal those of transformers, for both generations of configs."""

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from inflight.errors import UnsupportedError
from inflight.network import rope_from_config

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 4.0, "original_max_position_embeddings": 4096}

KINDS = {
    "default": ("default", {}),
    "linear": ("linear", {"factor": 2.5}),
    "llama3": ("llama3", LLAMA3),
    "llama3 factor 32": ("llama3", LLAMA3 | {"factor": 32.0}),
    "yarn": ("yarn", YARN),
    "yarn betas": ("yarn", YARN | {"beta_fast": 16, "beta_slow": 2}),
    "yarn untruncated": ("yarn", YARN | {"truncate": False}),
    "yarn attention factor": ("yarn", YARN | {"attention_factor": 1.25}),
    "yarn mscale": ("yarn", YARN | {"mscale": 0.7, "mscale_all_dim": 0.9}),
    "yarn shrinking": ("yarn", YARN | {"factor": 1.0}),
}


def reference(kind: str, parameters: dict, base: float, head_size: int) -> tuple[np.ndarray, float]:
    config = LlamaConfig(
        rope_parameters={"rope_type": kind, "rope_theta": base, **parameters},
        head_dim=head_size,
        max_position_embeddings=16384,
    )
    compute = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
    frequencies, scale = compute(config, "cpu")
    return frequencies.numpy(), scale


@pytest.mark.parametrize("base, head_size", [(10000.0, 64), (500000.0, 128), (1000000.0, 80)])
@pytest.mark.parametrize("kind, parameters", KINDS.values(), ids=KINDS)
def test_frequencies_equal_transformers(kind, parameters, base, head_size):
    wanted, wanted_scale = reference(kind, parameters, base, head_size)
    new = {"rope_parameters": {"rope_type": kind, "rope_theta": base, **parameters}}
    rope = rope_from_config(new | {"max_position_embeddings": 16384}, head_size)
    np.testing.assert_allclose(rope.inverse_frequencies, wanted, rtol=3e-7)
    assert rope.scale == pytest.approx(wanted_scale, rel=1e-12)
    assert len(rope.inverse_frequencies) == head_size // 2


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("kind, parameters", KINDS.values(), ids=KINDS)
def test_older_configs_give_the_same(kind, parameters, key):
    new = {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **parameters}, "max_position_embeddings": 16384}
    scaling = None if kind == "default" else {key: kind, **parameters}
    old = {"rope_theta": 5e5, "rope_scaling": scaling, "max_position_embeddings": 16384}
    assert rope_from_config(old, 64) == rope_from_config(new, 64)


def test_defaults():
    assert rope_from_config({}, 64) == rope_from_config({"rope_theta": 10000.0}, 64)
    assert rope_from_config({}, 64).scale == 1.0
    assert len(rope_from_config({"partial_rotary_factor": 0.5}, 64).inverse_frequencies) == 16


def test_original_length_falls_back_to_max_positions():
    scaling = {"rope_type": "yarn", "factor": 4.0}
    implied = rope_from_config({"rope_scaling": scaling, "max_position_embeddings": 2048}, 64)
    stated = rope_from_config({"rope_scaling": scaling | {"original_max_position_embeddings": 2048}}, 64)
    assert implied == stated


REFUSED = {
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is not supported .its frequencies depend"),
    "longrope": ({"type": "longrope"}, "'longrope' is not supported .its frequencies depend"),
    "unknown": ({"rope_type": "spiral"}, "'spiral' is not supported; supported: default, linear, llama3, yarn"),
    "incomplete": ({"rope_type": "llama3", "factor": 8.0}, "'llama3' needs low_freq_factor, high_freq_factor"),
    "by layer type": ({"full_attention": {"rope_type": "default"}}, "by layer type are not supported"),
}


@pytest.mark.parametrize("scaling, text", REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_named(scaling, text):
    with pytest.raises(UnsupportedError, match=text):
        rope_from_config({"rope_scaling": scaling}, 64)
