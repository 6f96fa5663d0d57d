"""Finds what a server needs on this machine: the binary, its python backend, libpython, our library, the templates."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from inflight.errors import InflightError

PACKAGE = Path(__file__).resolve().parent.parent
CONTAINER_ROOT = Path("/opt/tritonserver")
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


class ServerError(InflightError):
    """The server or a part of it is missing, does not start, or died. The text says what to do or shows the log."""


@dataclass(frozen=True)
class Installation:
    """A Triton server as it lies on the disk."""

    binary: Path
    python_backend: Path  # folder with libtriton_python.so
    stub: Path | None  # the python backend's process for this Python; None: `python_backend` holds its own
    libraries: tuple[Path, ...] = ()  # folders for the loader's search path


def find_installation(binary: Path | str | None = None) -> Installation:
    """`binary`, else that of the nvidia-pytriton package, else that of Triton's container. Raises ServerError."""
    if binary is not None:
        return _installation_of(Path(binary).absolute())
    bundle = _bundle_root()
    for candidate in filter(None, (bundle and bundle / "bin/tritonserver", CONTAINER_ROOT / "bin/tritonserver")):
        if candidate.is_file():
            return _installation_of(candidate)
    raise ServerError(
        f"no tritonserver: neither the Python package nvidia-pytriton nor {CONTAINER_ROOT} is there; "
        "pip install 'inflight[server]', or name the binary with --tritonserver"
    )


def find_backend_library(path: Path | str | None = None) -> Path:
    """libtriton_inflight.so: `path`, else the installed package's. Raises ServerError."""
    library = Path(path).absolute() if path is not None else PACKAGE / "backends/inflight/libtriton_inflight.so"
    candidates = [library] if path is not None else [library, *_installed("backends/inflight/libtriton_inflight.so")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ServerError(f"no backend library at {library}: pip install the inflight package builds it")


def find_templates() -> Path:
    """The folder of model configurations: the source tree's, else the installed package's. Raises ServerError."""
    candidates = [PACKAGE.parent.parent / "model_repo_templates", *_installed("model_repo_templates")]
    for candidate in candidates:
        if (candidate / "ensemble/config.pbtxt").is_file():
            return candidate
    raise ServerError(f"no model repository templates at {' or '.join(map(str, candidates))}")


def find_libpython() -> Path:
    """The shared library of the running Python, which the python backend embeds. Raises ServerError."""
    soname = f"libpython{PYTHON_VERSION}.so.1.0"
    for candidate in (Path(sysconfig.get_config_var("LIBDIR") or "/") / soname, _loader_path(soname)):
        if candidate is not None and candidate.is_file():
            return candidate
    raise ServerError(
        f"{soname} is missing, which Triton's python backend embeds: apt-get install libpython{PYTHON_VERSION}"
    )


def _installation_of(binary: Path) -> Installation:
    if not binary.is_file():
        raise ServerError(f"no tritonserver at {binary}")
    root = binary.resolve().parent.parent
    backend = root / "backends/python"
    if not (backend / "libtriton_python.so").is_file():
        raise ServerError(f"no python backend at {backend}: the tokenizer and the detokenizer need it")
    return Installation(binary, backend, _stub(root, backend), tuple(root.parent.parent.glob("nvidia_pytriton.libs")))


def _stub(root: Path, backend: Path) -> Path | None:
    if (backend / "triton_python_backend_stub").is_file():
        return None
    stub = root / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub"
    if stub.is_file():
        return stub
    versions = ", ".join(sorted(folder.name for folder in (root / "python_backend_stubs").glob("3.*"))) or "none"
    raise ServerError(f"the server at {root} has no python backend stub for Python {PYTHON_VERSION}; it has {versions}")


def _bundle_root() -> Path | None:
    """Found without importing the package, which takes half a second."""
    spec = importlib.util.find_spec("pytriton")
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) / "tritonserver" if folders else None


def _installed(relative: str) -> list[Path]:
    """Where an installation puts a file of the package, when its Python files lie elsewhere (editable)."""
    spec = importlib.util.find_spec("inflight")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    return [Path(folder) / relative for folder in [*folders, Path(sysconfig.get_path("platlib")) / "inflight"]]


def _loader_path(soname: str) -> Path | None:
    """Where the dynamic loader's cache has a library."""
    for program in ("ldconfig", "/sbin/ldconfig"):
        try:
            listing = subprocess.run([program, "-p"], capture_output=True, text=True, check=False).stdout
        except FileNotFoundError:
            continue
        found = re.search(rf"^\s*{re.escape(soname)} .*x86-64.* => (\S+)$", listing, re.MULTILINE)
        return Path(found.group(1)) if found else None
    return None
