"""Finding a server, its backend folder, the ranks of a repository, and the launch script's command line."""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inflight.serve import locate
from inflight.serve.backends import assemble, environment
from inflight.serve.llmapi_repository import fill_llmapi_repository
from inflight.serve.locate import Installation, ServerError, find_backend_library, find_installation, find_libpython
from inflight.serve.repository import fill_repository, with_ranks
from inflight.serve.server import Ports, TritonServer, server_command

SCRIPT = Path(__file__).parents[2] / "tools/launch_triton_server.py"
PATIENCE_S = 60.0


@pytest.fixture
def launch(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    return lambda *arguments: subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


@pytest.fixture
def installation(tmp_path):
    """Empty files in the places of a server."""
    root = tmp_path / "server"
    stub = root / "python_backend_stubs" / locate.PYTHON_VERSION / "triton_python_backend_stub"
    for file in (root / "bin/tritonserver", root / "backends/python/libtriton_python.so", stub):
        file.parent.mkdir(parents=True)
        file.touch()
    return find_installation(root / "bin/tritonserver")


def test_bundled_server_is_found():
    found = find_installation()
    assert found.binary.name == "tritonserver" and os.access(found.binary, os.X_OK)
    assert found.stub.parent.name == locate.PYTHON_VERSION
    assert [folder.name for folder in found.libraries] == ["nvidia_pytriton.libs"]


def test_missing_parts_are_named(tmp_path, installation):
    with pytest.raises(ServerError, match="no tritonserver at .*/nope"):
        find_installation(tmp_path / "nope")
    with pytest.raises(ServerError, match="no backend library at .*/nope.so"):
        find_backend_library(tmp_path / "nope.so")
    installation.stub.unlink()
    with pytest.raises(ServerError, match=f"no python backend stub for Python {locate.PYTHON_VERSION}"):
        find_installation(installation.binary)


def test_missing_libpython_names_the_package(monkeypatch):
    assert find_libpython().is_file()
    monkeypatch.setattr(locate.sysconfig, "get_config_var", lambda name: "/nowhere")
    monkeypatch.setattr(locate, "_loader_path", lambda soname: None)
    with pytest.raises(ServerError, match=f"apt-get install libpython{locate.PYTHON_VERSION}"):
        find_libpython()


def test_server_without_python_packages_brings_its_own_stub(tmp_path):
    root = tmp_path / "opt"
    for file in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_stub",
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    assert find_installation(root / "bin/tritonserver").stub is None


def test_backend_folder(tmp_path, installation):
    library = tmp_path / "libtriton_inflight.so"
    library.touch()
    folder = assemble(installation, library, tmp_path / "cache")
    names = {str(path.relative_to(folder)): path.resolve() for path in folder.rglob("*") if path.is_symlink()}
    assert names["backends/inflight/libtriton_inflight.so"] == library
    assert names["backends/tensorrtllm/libtriton_tensorrtllm.so"] == library
    assert names["backends/python/triton_python_backend_stub"] == installation.stub
    assert names[f"lib/{find_libpython().name}"] == find_libpython().resolve()
    assert assemble(installation, library, tmp_path / "cache") == folder


def test_environment(tmp_path):
    installation = Installation(tmp_path / "bin/tritonserver", tmp_path, None, (tmp_path / "libs",))
    made = environment(installation, tmp_path / "f", {"PATH": "/bin", "LD_LIBRARY_PATH": "/x", "KEPT": "1"})
    assert made["LD_LIBRARY_PATH"] == f"{tmp_path}/f/lib:{tmp_path}/libs:/x"
    python_folder, rest = made["PATH"].split(":", 1)
    assert (Path(python_folder) / "python3").exists() and rest == "/bin" and made["KEPT"] == "1"
    assert "LD_LIBRARY_PATH" in environment(installation, tmp_path / "f", {})


@pytest.fixture
def repository(tmp_path):
    return lambda **variables: fill_repository(tmp_path / "models", tmp_path, tmp_path, **variables)


def ranks_line(repository):
    text = (repository / "tensorrt_llm/config.pbtxt").read_text()
    return next(line for line in text.splitlines() if '"tensor_parallel_size"' in line)


def test_world_size_is_written_where_the_repository_leaves_it_open(tmp_path, repository):
    source = repository()
    mirror = with_ranks(source, ["tensorrt_llm"], 4, tmp_path)
    assert mirror.parent == tmp_path
    assert 'string_value: "4"' in ranks_line(mirror)
    assert "${tensor_parallel_size}" in ranks_line(source)
    assert {it.name for it in mirror.iterdir()} == {it.name for it in source.iterdir()}
    assert (mirror / "tensorrt_llm/1/model.py").is_file()


def test_world_size_must_agree_with_the_repository(tmp_path, repository):
    source = repository(tensor_parallel_size=2, pipeline_parallel_size=2)
    assert with_ranks(source, ["tensorrt_llm"], 4, tmp_path) == source
    with pytest.raises(ServerError, match="configured for 4 ranks, --world_size is 2"):
        with_ranks(source, ["tensorrt_llm"], 2, tmp_path)


def test_one_rank_needs_no_mirror(tmp_path, repository):
    source = repository()
    assert with_ranks(source, ["tensorrt_llm"], 1, tmp_path) == source


def test_unknown_model_is_named(tmp_path, repository):
    with pytest.raises(ServerError, match="no model other in"):
        with_ranks(repository(), ["other"], 2, tmp_path)


def test_unknown_variable_is_named(repository):
    with pytest.raises(ServerError, match="no_such_variable"):
        repository(no_such_variable=1)


def test_command(tmp_path, installation):
    command = server_command(installation, tmp_path, tmp_path / "m", "127.0.0.1", Ports(1, 2, 3), ["--log-verbose=3"])
    assert command[0] == str(installation.binary) and command[-1] == "--log-verbose=3"
    expected = {
        f"--model-repository={tmp_path}/m",
        f"--backend-directory={tmp_path}/backends",
        "--http-port=1",
        "--grpc-port=2",
        "--metrics-port=3",
        "--grpc-address=127.0.0.1",
        "--disable-auto-complete-config",
    }
    assert expected <= set(command)


def test_llmapi_model_is_asked_for_its_configuration(tmp_path, installation):
    models = fill_llmapi_repository(tmp_path / "m", tmp_path)
    command = server_command(installation, tmp_path, models, "127.0.0.1", Ports(1, 2, 3))
    assert "--disable-auto-complete-config" not in command


def test_llmapi_model_is_told_the_ranks(tmp_path):
    models = fill_llmapi_repository(tmp_path / "m", tmp_path)
    mirror = with_ranks(models, ["tensorrt_llm"], 2, tmp_path)
    assert 'string_value: "2"' in ranks_line(mirror)
    assert (mirror / "tensorrt_llm/1/model.yaml").samefile(models / "tensorrt_llm/1/model.yaml")


def test_script_starts_one_server_with_all_flags(tmp_path, repository, launch):
    """A program in the server's place writes down how it was called."""
    root = tmp_path / "server"
    (root / "backends/python").mkdir(parents=True)
    (root / "bin").mkdir()
    for name in ("libtriton_python.so", "triton_python_backend_stub"):
        (root / "backends/python" / name).touch()
    binary, calls = root / "bin/tritonserver", tmp_path / "calls"
    binary.write_text(f'#!/bin/sh\necho "$@" >> {calls}.part && mv {calls}.part {calls}\n')
    binary.chmod(0o755)
    flags = "--force --log --no-mpi --oversubscribe --multi-model --disable-spawn-processes --trtllm_llmapi_launch"
    ports = "--grpc_port 21 --http_port 20 --metrics_port 22 --exit_timeout 5 --multimodal_gpu0_cuda_mem_pool_bytes 9"
    done = launch(
        *f"--world_size 2 {flags} {ports} --log-file here.txt --tensorrt_llm_model_name tensorrt_llm".split(),
        "--model_repo", repository(), "--tritonserver", binary, "--backend_library", binary,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + PATIENCE_S
    while not calls.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    (call,) = calls.read_text().splitlines()
    wanted = "--http-port=20 --grpc-port=21 --metrics-port=22 --log-verbose=3 --log-file=here.txt --exit-timeout-secs=5"
    assert set(f"{wanted} --cuda-memory-pool-byte-size=0:9".split()) <= set(call.split())
    mirror = Path(next(word for word in call.split() if word.startswith("--model-repository=")).partition("=")[2])
    assert 'string_value: "2"' in ranks_line(mirror)


def test_script_refuses_what_is_missing(tmp_path, launch):
    done = launch("--force", "--tritonserver", tmp_path / "nope", "--model_repo", tmp_path)
    assert done.returncode != 0 and f"no tritonserver at {tmp_path}/nope" in done.stderr


def test_script_refuses_a_bad_world_size(launch):
    assert "--world_size is 0, wanted at least 1" in launch("--world_size", 0).stderr


def test_taken_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = dataclasses.replace(Ports.free(), grpc=taken.getsockname()[1])
        with (
            pytest.raises(ServerError, match=rf"port {ports.grpc} \(grpc\) is taken"),
            TritonServer(tmp_path, ports=ports),
        ):
            pass


def test_server_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "models").mkdir()
    code = (
        "import os, sys; from pathlib import Path; from inflight.serve.server import TritonServer\n"
        f"folder = Path({str(tmp_path)!r}); (folder / 'libtriton_inflight.so').touch()\n"
        "server = TritonServer(folder / 'models', library=folder / 'libtriton_inflight.so', cache=folder / 'cache')\n"
        "server.__enter__(); print(server.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    deadline = time.monotonic() + PATIENCE_S
    while (state := process_state(pid)) not in (None, "Z") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert state in (None, "Z")


def process_state(pid):
    """The letter of /proc, None when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return None


def test_server_that_dies_shows_its_log(tmp_path):
    (tmp_path / "models/broken/1").mkdir(parents=True)
    (tmp_path / "models/broken/config.pbtxt").write_text('backend: "no_such_backend"\n')
    library = tmp_path / "libtriton_inflight.so"
    library.touch()
    server = TritonServer(tmp_path / "models", library=library, cache=tmp_path / "cache", log=tmp_path / "log")
    with pytest.raises(ServerError, match="no_such_backend"), server:
        pass
    assert server.exit_code not in (None, 0)
