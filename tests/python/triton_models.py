"""A real server that holds some of the repository's python models, for the tests of the models."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc

from inflight.serve.repository import fill_repository
from inflight.serve.server import TritonServer

DEMO_MODEL = Path(__file__).parent.parent / "demo_model/python-7m"


@contextmanager
def python_models(folder, *models, tokenizer_dir=DEMO_MODEL, **variables):
    """Yields infer(model, **arrays) -> {output: array} on a server with only `models`."""
    repository = fill_repository(folder / "models", tokenizer_dir, tokenizer_dir, **variables)
    for model in repository.iterdir():
        if model.name not in models:
            shutil.rmtree(model)
    no_engine = folder / "libtriton_inflight.so"  # linked into the backend folder, but no model loads it
    no_engine.touch()
    server = TritonServer(repository, library=no_engine, cache=folder / "backends", log=folder / "server.log")
    with server, grpc.InferenceServerClient(server.grpc_url) as client:
        yield lambda model, **arrays: infer(client, model, arrays)


def infer(client, model, arrays):
    result = client.infer(model, [tensor(name, array) for name, array in arrays.items()])
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def tensor(name, array):
    types = {"O": "BYTES", "?": "BOOL", "i": "INT32", "f": "FP32", "L": "UINT64", "B": "UINT8"}
    made = grpc.InferInput(name, array.shape, types[array.dtype.char])
    made.set_data_from_numpy(array)
    return made


def strings(rows):
    return np.array([[text.encode() if isinstance(text, str) else text for text in row] for row in rows], object)


def int32(rows):
    return np.array(rows, np.int32)
