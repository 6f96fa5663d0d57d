"""Cancellation of requests whose thread waits for another model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PERIOD_S = 0.05


class CancellationWatch:
    """One thread that asks the live requests whether they are cancelled; it sleeps while there are none."""

    def __init__(self, period_s: float = PERIOD_S):
        self._period_s = period_s
        self._live: set[_Live] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="cancellation-watch")
        self._thread.start()

    @contextmanager
    def watching(self, is_cancelled: Callable[[], bool], on_cancel: Callable[[], None]) -> Iterator[None]:
        """Within, `on_cancel` is called once, on the watch's thread, when `is_cancelled` turns true. Afterwards neither
        is called any more."""
        live = _Live(is_cancelled, on_cancel)
        with self._changed:
            self._live.add(live)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._live.discard(live)
            live.end()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._live or self._closing)
                self._changed.wait_for(lambda: self._closing, self._period_s)
                if self._closing:
                    return
                live = list(self._live)
            for it in live:
                it.look()


class _Live:
    def __init__(self, is_cancelled: Callable[[], bool], on_cancel: Callable[[], None]):
        self._is_cancelled = is_cancelled
        self._on_cancel = on_cancel
        self._ended = False
        self._lock = threading.Lock()

    def look(self) -> None:
        with self._lock:
            if not self._ended and self._is_cancelled():
                self._ended = True
                self._on_cancel()

    def end(self) -> None:
        with self._lock:
            self._ended = True
