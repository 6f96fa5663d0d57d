"""inflight build CHECKPOINT -o DIR"""

import argparse
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from inflight import plan
from inflight.bench import shapes
from inflight.errors import NetworkError
from inflight.models import define as define_from_config
from inflight.network import Definition


def add_arguments(parser: argparse.ArgumentParser):
    names = ", ".join(shapes.SHAPES)
    checkpoint = f"Hugging Face checkpoint folder (safetensors), or a model without weights by name: {names}"
    parser.add_argument("checkpoint", type=Path, help=checkpoint)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="engine folder to write")
    parser.add_argument("--force", action="store_true", help="replace an existing plan")
    parser.add_argument("--relative", action="store_true", help="name the checkpoint's folder relative to DIR")
    own = "a network of your own: a file with define(config) -> Definition"
    parser.add_argument("--network", type=Path, metavar="FILE.py", help=own)


def run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    if shapes.is_name(str(args.checkpoint)):
        shapes.build(str(args.checkpoint), args.output, force=args.force)
    else:
        define = load_definition(args.network) if args.network else define_from_config
        plan.build(args.checkpoint, args.output, force=args.force, relative=args.relative, define=define)
    network = plan.read(args.output)["network"]
    print(
        f"{args.output / plan.PLAN_FILE}: {network['family']}, {network['num_layers']} layers, "
        f"{network['num_parameters'] / 1e6:,.1f} M parameters, written in {time.perf_counter() - start:.2f} s"
    )
    return 0


def load_definition(path: Path) -> Callable[[Mapping], Definition]:
    """The define() of a Python file."""
    if not path.is_file():
        raise NetworkError(f"{path}: not a file; wanted Python with define(config) -> Definition")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "define", None)):
        raise NetworkError(f"{path}: has no function define(config) -> Definition")
    return module.define
