"""A short run of the random requests to a live server; `make fuzz` runs the long one."""

import asyncio

from fuzz_wire import fuzz_server
from inflight.soak.wire import Addresses


def test_random_requests(served):
    ports = served.server.ports
    addresses = Addresses(*(f"127.0.0.1:{port}" for port in (ports.grpc, ports.http, ports.metrics)))
    fuzz = asyncio.run(fuzz_server(addresses, cases=600, seed=4))
    assert fuzz.findings == []
    for kind in ("gRPC answered", "gRPC refused", "HTTP answered", "HTTP refused"):
        assert fuzz.counts[kind] > 20, fuzz.counts
