"""Model repositories: filled from the templates, or an existing one with the ranks written in."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from inflight.serve.locate import PACKAGE, ServerError, find_templates
from inflight.serve.template import fill

ENGINE_MODEL = "tensorrt_llm"
DRAFT_MODEL = "tensorrt_llm_draft"
TEXT_MODEL = "inflight_text"
RANK_PARAMETERS = ("tensor_parallel_size", "pipeline_parallel_size")


def fill_repository(
    folder: Path, engine_dir: Path, tokenizer_dir: Path, draft_engine_dir: Path | None = None, **variables: object
) -> Path:
    """Writes the six models into `folder`, which must not hold them yet; returns it. `draft_engine_dir`: writes
    DRAFT_MODEL too, whose guesses the models with texts let the engine verify. `variables`: template variables that
    differ from what a plain server wants; unknown ones raise ServerError."""
    values = {
        "triton_backend": "inflight",
        "triton_max_batch_size": 8,
        "decoupled_mode": True,
        "batching_strategy": "inflight_fused_batching",
        "engine_dir": engine_dir.absolute(),
        "tokenizer_dir": tokenizer_dir.absolute(),
        "tensorrt_llm_model_name": ENGINE_MODEL,
        "exclude_input_in_output": True,
        "add_special_tokens": True,
        "bls_instance_count": 1,
        **variables,
    }
    substitutions = {key: str(value) for key, value in values.items()}
    shutil.copytree(find_templates(), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    if draft_engine_dir is not None:
        _add_draft_model(folder, draft_engine_dir.absolute())
        substitutions["tensorrt_llm_draft_model_name"] = DRAFT_MODEL
    unused = set(substitutions)
    for config in sorted(folder.glob("*/config.pbtxt")):
        text = config.read_text(encoding="utf-8")
        here = {key: value for key, value in substitutions.items() if f"${{{key}}}" in text}
        config.write_text(fill(text, here), encoding="utf-8")
        unused -= set(here)
    if unused:
        raise ServerError(f"no template has the variables {', '.join(sorted(unused))}")
    link_package(folder)
    return folder


def _add_draft_model(folder: Path, engine_dir: Path) -> None:
    """A second engine model, with its engine filled in."""
    shutil.copytree(folder / ENGINE_MODEL, folder / DRAFT_MODEL)
    config = folder / DRAFT_MODEL / "config.pbtxt"
    text = config.read_text(encoding="utf-8").replace(f'name: "{ENGINE_MODEL}"', f'name: "{DRAFT_MODEL}"')
    config.write_text(fill(text, {"engine_dir": str(engine_dir)}), encoding="utf-8")


def link_package(repository: Path) -> None:
    """Puts this very package beside the python models: their Python sees it there when it is not installed."""
    for config in repository.glob("*/config.pbtxt"):
        if 'backend: "python"' in config.read_text(encoding="utf-8"):
            (config.parent / "1" / "inflight").symlink_to(PACKAGE)


def with_ranks(repository: Path, models: Iterable[str], world_size: int, parent: Path | None = None) -> Path:
    """The repository itself when its engine models have `world_size` ranks already; else a new folder in `parent` (the
    temporary folder) of links to it and of configurations in which the number of tensor-parallel ranks is written.
    Raises ServerError when a configuration names another number."""
    texts = {model: _read_config(repository, model) for model in models}
    ranks = {model: _ranks(text) for model, text in texts.items()}
    for model, found in ranks.items():
        if found not in (None, world_size):
            raise ServerError(f"model {model} is configured for {found} ranks, --world_size is {world_size}")
    unset = {model for model, found in ranks.items() if found is None}
    if world_size == 1 or not unset:
        return repository
    mirror = Path(tempfile.mkdtemp(prefix="inflight-repository-", dir=parent))
    for source in repository.iterdir():
        if source.name not in unset:
            (mirror / source.name).symlink_to(source.absolute())
    for model in unset:
        _mirror_model(repository / model, mirror / model, _with_parameter(texts[model], world_size))
    return mirror


def _mirror_model(source: Path, target: Path, config: str) -> None:
    target.mkdir()
    for entry in source.iterdir():
        if entry.name != "config.pbtxt":
            (target / entry.name).symlink_to(entry.absolute())
    (target / "config.pbtxt").write_text(config, encoding="utf-8")


def _read_config(repository: Path, model: str) -> str:
    path = repository / model / "config.pbtxt"
    if not path.is_file():
        raise ServerError(f"no model {model} in {repository}: {path} is missing")
    return path.read_text(encoding="utf-8")


def _ranks(config: str) -> int | None:
    """Product of the rank parameters; None when none is filled in."""
    sizes = [match.group(1) for key in RANK_PARAMETERS if (match := _find_parameter(config, key))]
    numbers = [int(size) for size in sizes if size.isdigit()]
    return math.prod(numbers) if numbers else None


def _find_parameter(config: str, key: str) -> re.Match[str] | None:
    pattern = rf'key:\s*"{key}"[\s,]*value:?\s*\{{\s*string_value:\s*"([^"]*)"'
    return re.search(pattern, config)


def _with_parameter(config: str, world_size: int) -> str:
    match = _find_parameter(config, RANK_PARAMETERS[0])
    if match is None:
        line = f'parameters: {{ key: "{RANK_PARAMETERS[0]}" value: {{ string_value: "{world_size}" }} }}\n'
        return f"{config.rstrip()}\n{line}"
    return config[: match.start(1)] + str(world_size) + config[match.end(1) :]
