"""The folder that the server takes as --backend-directory: links to its python backend and to our library."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from inflight.serve.locate import Installation, find_libpython

# The second name is the one that existing model repositories use.
BACKEND_NAMES = ("inflight", "tensorrtllm")
PYTHON_BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub")
CACHE_DIRECTORY = Path.home() / ".cache" / "inflight" / "backends"


def assemble(installation: Installation, library: Path | None, cache: Path | None = None) -> Path:
    """A folder with backends/ and lib/ (what else the loader must find), made of links and kept in `cache`.
    `library`: libtriton_inflight.so; None leaves our backend out."""
    links = _links(installation, library)
    key = hashlib.sha256(repr(sorted(links.items())).encode()).hexdigest()[:16]
    folder = (cache or CACHE_DIRECTORY) / key
    if not folder.is_dir():
        _make_at_once(folder, links)
    return folder


def environment(installation: Installation, folder: Path, base: dict[str, str]) -> dict[str, str]:
    """`base` with what the server and its embedded Python need: that Python finds its packages as the first python3
    in PATH does, and ignores PYTHONPATH."""
    libraries = [folder / "lib", *installation.libraries]
    search = [*map(str, libraries), *filter(None, [base.get("LD_LIBRARY_PATH")])]
    path = [str(_python_folder()), *filter(None, [base.get("PATH")])]
    return {**base, "LD_LIBRARY_PATH": ":".join(search), "PATH": ":".join(path)}


def _python_folder() -> Path:
    """A folder whose python3 is the running one."""
    folder = Path(sys.executable).parent
    return folder if (folder / "python3").exists() else Path(sys.prefix) / "bin"


def _links(installation: Installation, library: Path | None) -> dict[str, str]:
    links = {}
    for name in PYTHON_BACKEND_FILES:
        if (file := installation.python_backend / name).is_file():
            links[f"backends/python/{name}"] = str(file)
    if installation.stub is not None:
        links["backends/python/triton_python_backend_stub"] = str(installation.stub)
        libpython = find_libpython()
        links[f"lib/{libpython.name}"] = str(libpython.resolve())
    if library is not None:
        for name in BACKEND_NAMES:
            links[f"backends/{name}/libtriton_{name}.so"] = str(library)
    return links


def _make_at_once(folder: Path, links: dict[str, str]) -> None:
    """Other processes see the whole folder or none."""
    building = folder.with_name(f"{folder.name}.{os.getpid()}")
    for name, target in links.items():
        (building / name).parent.mkdir(parents=True, exist_ok=True)
        (building / name).symlink_to(target)
    try:
        building.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(building)
