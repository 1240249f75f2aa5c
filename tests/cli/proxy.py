"""A connection that is cut where a test says so."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

Cut = Literal["before", "after", "middle"]


class CuttingProxy:
    """Passes connections on to `url`; each entry of `cuts` spoils one of them, in order.

    before: the request is read and never passed on; after: it is carried out, the answer dropped;
    middle: the connection ends after the first event of the answer.
    """

    def __init__(self, url: str, *cuts: Cut) -> None:
        self._target = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        self.cuts = list(cuts)
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def cut_all(self) -> None:
        """End every connection now."""
        for one in self._open:
            _shut(one)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            cut = self.cuts.pop(0) if self.cuts else None
            thread = threading.Thread(target=self._serve, args=(near, cut))
            self._threads.append(thread)
            thread.start()

    def _serve(self, near: socket.socket, cut: Cut | None) -> None:
        with near, socket.create_connection(self._target) as far:
            self._open += [near, far]
            if cut == "before":
                near.recv(65536)
                return
            back = threading.Thread(target=self._back, args=(far, near, cut))
            back.start()
            _pump(near, far)
            back.join()

    def _back(self, far: socket.socket, near: socket.socket, cut: Cut | None) -> None:
        if cut is not None:
            piece = far.recv(65536)
            while cut == "middle" and b"data:" not in piece:
                piece += far.recv(65536)
            if cut == "middle":
                near.sendall(piece)
            _shut(near)
            _shut(far)
        else:
            _pump(far, near)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while piece := source.recv(65536):
            target.sendall(piece)
    except OSError:
        pass  # cut
    _shut(target)


def _shut(one: socket.socket) -> None:
    with suppress(OSError):  # it may have ended already
        one.shutdown(socket.SHUT_RDWR)
