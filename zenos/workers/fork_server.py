"""The daemon's side of a fork server: starts it, asks for forks, starts it again when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from zenos.core import durable, forking, limits, shim
from zenos.core.home import Home
from zenos.workers.runs import inductor

log = logging.getLogger(__name__)
RESTART_S: Final = 1.0
QUEUE_FULL_S: Final = 0.005
# Set before the zygote's imports: libraries read them once, and one thread is all that may be there
# when it forks.
ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # How long a thread of a parallel region spins for the others before it sleeps. The default is
    # 60 times this: no faster on an idle machine, and where something else has a core (measured
    # with two threads on two cores, one of them busy) half as fast.
    "GOMP_SPINCOUNT": "5000",
}


@contextmanager
def _blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Started now, a process has these signals wait until it can say what they mean to it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ForkServer:
    """One process that forks shims, kept alive from `start` to `close`.

    name: what it is called in messages. module: run with the descriptor of its
    socket and the home. log: the file in the home for what it says.
    """

    def __init__(
        self, home: Home, name: str, module: str, log: str, environment: dict[str, str]
    ) -> None:
        self._home = home
        self._name = name
        self._module = module
        self._log = home.root / log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def ready(self) -> bool:
        """Whether it has imported all and can fork."""
        return self._ready.is_set()

    @property
    def pid(self) -> int | None:
        """Its process id, while there is one."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start it, if it isn't; returns at once, `ready` comes some seconds later."""
        if self._keeper is None and not self._closing:
            self._keeper = asyncio.create_task(self._keep())

    async def fork(self, spec: Path, notify: int) -> None:
        """Have it fork a shim for `spec`, which talks on the descriptor `notify`.

        Waits until it is ready, for the next one where it has just died. OSError when it died
        before it was ready; then nothing was forked.
        """
        await self.start()
        while not self._closing:
            await self._ready.wait()
            if self._socket is None:
                break
            try:
                socket.send_fds(self._socket, [os.fsencode(spec)], [notify])
            except (BlockingIOError, ConnectionError):  # hundreds wait there already; it has died
                await asyncio.sleep(QUEUE_FULL_S)
            else:
                return
        raise ConnectionError(f"the {self._name} has ended; why says {self._log}")

    async def close(self) -> None:
        """End it. The shims that it forked, and their workers, live on."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        await self._end()
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        """Whoever waits for it hears that it is gone; else a broken one is waited for for ever."""
        self._ready.set()
        self._ready.clear()

    async def _keep(self) -> None:
        while True:
            try:
                await self._run()
            except OSError as error:
                log.error("the %s cannot be started: %s", self._name, error)  # noqa: TRY400
            was_ready = self._ready.is_set()
            await self._end()
            if not was_ready:
                self._tell_waiters()
            await asyncio.sleep(RESTART_S)

    async def _run(self) -> None:
        """Start one and wait for its end."""
        self._rotate()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with (
            theirs,
            open(self._log, "ab", opener=durable.private) as output,  # noqa: ASYNC230
            _blocked(forking.IGNORED),
        ):
            self._process = subprocess.Popen(  # noqa: ASYNC220 - milliseconds, once
                [
                    sys.executable,
                    "-P",
                    "-m",
                    self._module,
                    str(theirs.fileno()),
                    str(self._home.root),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._environment},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.setblocking(False)
        self._socket = ours
        loop = asyncio.get_running_loop()
        with suppress(ConnectionResetError):  # it died with a request that it hadn't read
            while said := await loop.sock_recv(ours, 4096):
                if said == b"ready":
                    log.info("the %s (pid %d) is ready", self._name, self._process.pid)
                    self._ready.set()
        if not self._closing:
            log.warning("the %s has died; starting another", self._name)

    def _rotate(self) -> None:
        """Set a long log aside, so that two at most are kept: one that dies often writes often."""
        with suppress(FileNotFoundError):
            if self._log.stat().st_size > limits.DAEMON_LOG_BYTES_MAX:
                self._log.replace(f"{self._log}.1")

    async def _end(self) -> None:
        self._ready.clear()
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is None:
            return
        # It ends by itself when its socket closes; while it imports it doesn't look.
        if shim.start_time(process.pid):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait)


def zygote(home: Home) -> ForkServer:
    """For torch work: has torch and transformers imported."""
    environment = {**ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": inductor(home)}
    return ForkServer(home, "zygote", "zenos.runtime.zygote", "zygote.log", environment)


def launcher(home: Home) -> ForkServer:
    """For programs: the standard library alone."""
    return ForkServer(home, "launcher", "zenos.workers.launcher", "shim.log", {})
