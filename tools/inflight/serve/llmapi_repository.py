"""Repositories of the llmapi model: one python model that holds the engine and is set up by model.yaml."""

from __future__ import annotations

import shutil
from pathlib import Path

from inflight.serve.locate import PACKAGE, find_templates
from inflight.serve.template import fill

TEMPLATE = "model_repo_llmapi"  # beside the folder of the other templates, of which one has the same name
SETTINGS_FILE = "model.yaml"


def fill_llmapi_repository(folder: Path, engine_dir: Path, decoupled_mode: bool = True) -> Path:
    """Writes the model into `folder`, which must not hold it yet; returns it."""
    template = find_templates().with_name(TEMPLATE)
    shutil.copytree(template, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    version = folder / "tensorrt_llm" / "1"
    settings = version / SETTINGS_FILE
    values = {"engine_dir": str(engine_dir.absolute()), "decoupled_mode": str(decoupled_mode).lower()}
    settings.write_text(fill(settings.read_text(encoding="utf-8"), values), encoding="utf-8")
    (version / "inflight").symlink_to(PACKAGE)  # its Python sees this very package when it is not installed
    return folder


def completes_configs(repository: Path) -> bool:
    """Whether a model there has settings that the server must ask its script for."""
    return any(repository.glob(f"*/1/{SETTINGS_FILE}"))
