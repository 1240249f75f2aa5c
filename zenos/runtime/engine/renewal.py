"""A replica takes the versions that are published: from the word to the weights in use.

1. `hear` keeps the newest word; one that isn't newer than what is there is left out.
2. A thread gets that version's weights and lays them out, while the engines go on.
3. `turn`, between two steps, takes them into use.

The next ones are not begun before the last ones are the only ones, so that never more than two sets
of weights are held. Where there is no room for two, the engines are drained first.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from zenos.core.errors import NotFoundError, WorkerError
from zenos.core.wire import Weights
from zenos.runtime import weights
from zenos.runtime.context import WorkerContext
from zenos.runtime.engine.batch import Backend
from zenos.runtime.engine.generations import Generations

if TYPE_CHECKING:
    from zenos.runtime.engine.serve import Loaded

log = logging.getLogger(__name__)
RETRY_S: Final = 5.0  # after weights could not be had
_JOIN_S: Final = 10.0


class _Made(NamedTuple):
    """What the thread has made. backend: None where it failed. version: what was loaded: the one
    from before, where a replica without weights could not get the new ones."""

    backend: Backend | None
    version: str
    error: Exception | None


class Renewal:
    """Renews the weights of one replica. Used from the thread that steps its engines."""

    def __init__(self, context: WorkerContext, loaded: Loaded, engines: Generations) -> None:
        self._context = context
        self._loaded = loaded
        self._engines = engines
        self._turn = 0
        self._wanted: Weights | None = None
        self._under_way: Weights | None = None
        self._alone = False  # no weights are held while the next ones are being loaded
        self._thread: threading.Thread | None = None
        self._made = _Made(None, "", None)
        self._not_before = 0.0

    @property
    def is_due(self) -> bool:
        """Whether another version is to come."""
        return self._wanted is not None or self._under_way is not None

    def hear(self, word: Weights) -> None:
        """The version to serve from now on; the newest word counts."""
        if word.turn > self._turn:
            self._turn, self._wanted, self._not_before = word.turn, word, 0.0

    def turn(self) -> None:
        """Between two steps: take into use what is ready, begin what is due.

        WorkerError where this replica is left without any weights.
        """
        if self._thread is not None:
            if self._thread.is_alive():
                return
            self._use()
        wanted = self._wanted
        if wanted is None or time.monotonic() < self._not_before:
            return
        if wanted.version == self._engines.version:
            self._wanted = None
            self._engines.resume()
        elif self._engines.settled and self._loaded.has_room:
            self._begin(wanted, alone=False)
        elif self._engines.settled:
            self._engines.drain()
            if self._engines.drained:
                log.info("no room for two sets of weights: the old ones go first")
                self._engines.unload()
                self._begin(wanted, alone=True)

    def wait(self, timeout_s: float) -> None:
        """Until the thread is done, or that time is over."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def close(self) -> None:
        """Wait for the thread to end."""
        self.wait(_JOIN_S)

    def _begin(self, word: Weights, *, alone: bool) -> None:
        self._wanted, self._under_way, self._alone = None, word, alone
        self._thread = threading.Thread(target=self._make, args=(word,), name="renew", daemon=True)
        self._thread.start()

    def _make(self, word: Weights) -> None:
        try:
            self._made = _Made(self._backend(word.version, word.source), word.version, None)
        except Exception as error:
            log.warning("cannot take %s: %s", word.version, error, exc_info=True)
            self._made = _Made(None, word.version, error)
            if self._alone:
                self._make_old(error)

    def _make_old(self, failure: Exception) -> None:
        old = self._engines.version
        try:
            self._made = _Made(self._backend(old, ""), old, failure)
        except Exception:
            log.exception("cannot go back to %s", old)

    def _backend(self, ref: str, source: str) -> Backend:
        version = self._context.registry.resolve(ref)
        at = weights.address(self._context.home, source) if source else ""
        return self._loaded.backend(self._context.registry.path(version), at, version.ref)

    def _use(self) -> None:
        made, word = self._made, self._under_way
        self._thread, self._under_way, self._made = None, None, _Made(None, "", None)
        if made.backend is None:
            if self._alone:
                raise WorkerError(f"cannot go on: the weights could not be loaded: {made.error}")
        elif self._alone:
            self._engines.load(made.backend, self._loaded.positions(made.backend), made.version)
        else:
            self._engines.adopt(
                self._loaded.engine_of(made.backend, made.version),
                self._loaded.weights_positions(made.backend),
            )
        if made.error is None:
            log.info("%s is served from now on", made.version)
        elif self._wanted is None and not isinstance(made.error, NotFoundError):
            # One that was removed has a successor, of which we shall hear.
            self._wanted, self._not_before = word, time.monotonic() + RETRY_S
