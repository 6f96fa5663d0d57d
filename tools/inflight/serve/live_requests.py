"""Requests in flight, so that they can be cancelled, and stopped by the id that their client gave them."""

from __future__ import annotations

import threading
from collections import defaultdict

from inflight.executor import Handle


class LiveRequest:
    """One request and what it has at the executor. It may be cancelled before that is submitted, too."""

    def __init__(self) -> None:
        self.stopped = False  # by an order
        self._cancelled = False
        self._handles: list[Handle] = []
        self._lock = threading.Lock()

    def attach(self, handle: Handle) -> None:
        with self._lock:
            self._handles.append(handle)
            if self._cancelled:
                handle.cancel()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            for handle in self._handles:
                handle.cancel()


class LiveRequests:
    """By id; several may share one. Requests without an id cannot be found."""

    def __init__(self) -> None:
        self._by_id: defaultdict[str, set[LiveRequest]] = defaultdict(set)
        self._lock = threading.Lock()

    def open(self, id_: str) -> LiveRequest:
        live = LiveRequest()
        if id_:
            with self._lock:
                self._by_id[id_].add(live)
        return live

    def close(self, id_: str, live: LiveRequest) -> None:
        with self._lock:
            if id_ in self._by_id:
                self._by_id[id_].discard(live)
                if not self._by_id[id_]:
                    del self._by_id[id_]

    def stop(self, id_: str) -> None:
        """Cancels all that have the id now; none need be there."""
        with self._lock:
            found = list(self._by_id.get(id_, ()))
        for live in found:
            live.stopped = True
            live.cancel()
