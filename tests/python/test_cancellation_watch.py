"""Requests whose thread waits for something else, and their cancellation, without a server."""

import threading

import pytest

from inflight.serve.cancellation_watch import CancellationWatch


@pytest.fixture
def watch():
    watch = CancellationWatch(period_s=0.001)
    yield watch
    watch.close()


def test_cancelled_while_waiting(watch):
    cancelled, told = threading.Event(), threading.Event()
    with watch.watching(cancelled.is_set, told.set), watch.watching(lambda: False, lambda: pytest.fail("not this one")):
        assert not told.wait(0.01)
        cancelled.set()
        assert told.wait(10)


def test_told_once_and_never_afterwards(watch):
    calls = []
    with watch.watching(lambda: True, lambda: calls.append(1)):
        while not calls:
            pass
    seen = len(calls)
    with watch.watching(lambda: False, lambda: None):
        threading.Event().wait(0.02)
    assert seen == len(calls) == 1
