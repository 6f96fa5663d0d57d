#!/usr/bin/env python3
"""Starts one tritonserver on a model repository and leaves it running."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from inflight.errors import InflightError
from inflight.serve.backends import assemble, environment
from inflight.serve.locate import CONTAINER_ROOT, find_backend_library, find_installation
from inflight.serve.repository import ENGINE_MODEL, TEXT_MODEL, with_ranks
from inflight.serve.server import Ports, server_command

DESCRIPTION = """Starts one tritonserver process on a model repository and returns without waiting for it. There is no
MPI and no process for each rank: ranks are threads of the engine, so --world_size N only sets the model's number of
tensor-parallel ranks, where its config.pbtxt leaves it open."""

# Options of the launch script that this one replaces, which have nothing to act on here.
IGNORED_FLAGS = {
    "--no-mpi": "one process is started in any case",
    "--oversubscribe": "an option of mpirun",
    "--multi-model": "one server holds any number of engine models",
    "--disable-spawn-processes": "no worker processes are spawned",
    "--trtllm_llmapi_launch": "ranks are threads of the engine, as many as model.yaml says",
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument("--world_size", type=int, default=1, help="ranks of each engine model (default: 1)")
    parser.add_argument(
        "--tritonserver", help=f"server binary (default: {CONTAINER_ROOT}/bin/tritonserver, else the Python package's)"
    )
    parser.add_argument("--grpc_port", type=int, default=8001)
    parser.add_argument("--http_port", type=int, default=8000)
    parser.add_argument("--metrics_port", type=int, default=8002)
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
    parser.add_argument("-f", "--force", action="store_true", help="start although a tritonserver runs already")
    parser.add_argument("--log", action="store_true", help="log verbosely into --log-file")
    parser.add_argument("--log-file", default="triton_log.txt", help="default: triton_log.txt")
    parser.add_argument("--model_repo", type=Path, default=Path("../all_models/gpt"), help="model repository")
    parser.add_argument("--tensorrt_llm_model_name", default=ENGINE_MODEL, help="engine models, separated by commas")
    parser.add_argument("--backend_library", type=Path, help="libtriton_inflight.so (default: the installed one)")
    parser.add_argument("--multimodal_gpu0_cuda_mem_pool_bytes", type=int, default=0, help="CUDA pool of GPU 0")
    parser.add_argument("--exit_timeout", type=int, help="seconds that running requests have when the server ends")
    for flag, reason in IGNORED_FLAGS.items():
        parser.add_argument(flag, action="store_true", help=f"accepted without effect: {reason}")
    args = parser.parse_args(arguments)
    if args.world_size < 1:
        parser.error(f"--world_size is {args.world_size}, wanted at least 1")
    return args


def extra_arguments(args: argparse.Namespace) -> list[str]:
    flags = []
    if args.log:
        flags += ["--log-verbose=3", f"--log-file={args.log_file}"]
    if args.exit_timeout is not None:
        flags.append(f"--exit-timeout-secs={args.exit_timeout}")
    if args.multimodal_gpu0_cuda_mem_pool_bytes:
        flags.append(f"--cuda-memory-pool-byte-size=0:{args.multimodal_gpu0_cuda_mem_pool_bytes}")
    return flags


def running_servers() -> list[int]:
    """Process ids of servers on this machine."""
    names = ((int(path.parent.name), path) for path in Path("/proc").glob("[0-9]*/comm"))
    return [pid for pid, path in names if _read(path).strip() == "tritonserver"]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended meanwhile
        return ""


def main(args: argparse.Namespace) -> subprocess.Popen:
    if not args.force and (pids := running_servers()):
        sys.exit(f"a tritonserver runs already (process {pids[0]}): stop it, or add --force")
    container = CONTAINER_ROOT / "bin/tritonserver"
    installation = find_installation(args.tritonserver or (container if container.is_file() else None))
    folder = assemble(installation, find_backend_library(args.backend_library))
    models = args.tensorrt_llm_model_name.split(",")
    models += [TEXT_MODEL] * (args.model_repo / TEXT_MODEL / "config.pbtxt").is_file()  # it may share their executor
    repository = with_ranks(args.model_repo, models, args.world_size)
    ports = Ports(args.http_port, args.grpc_port, args.metrics_port)
    command = server_command(installation, folder, repository, args.host, ports, extra_arguments(args))
    return subprocess.Popen(command, env=environment(installation, folder, dict(os.environ)))


if __name__ == "__main__":
    try:
        main(parse_arguments())
    except InflightError as error:
        sys.exit(f"launch_triton_server.py: {error}")
