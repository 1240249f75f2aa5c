"""The daemon's side of the zygote: starts it, asks it for forks, starts it again when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from zenos.core import shim
from zenos.core.home import Home
from zenos.workers.runs import inductor

log = logging.getLogger(__name__)
RESTART_S: Final = 1.0
# Set before the zygote's imports: libraries read them once, and one thread is all that may be there
# when it forks.
ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class ZygoteClient:
    """One zygote process, kept alive from `start` to `close`."""

    def __init__(self, home: Home) -> None:
        self._home = home
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

        Waits until the zygote is ready. OSError when it died meanwhile; then nothing was forked.
        """
        await self.start()
        await self._ready.wait()
        if self._socket is None:
            raise ConnectionError("the zygote has just died")
        socket.send_fds(self._socket, [os.fsencode(spec)], [notify])

    async def close(self) -> None:
        """End it. The shims that it forked, and their workers, live on."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        await self._end()

    async def _keep(self) -> None:
        while True:
            try:
                await self._run()
            except OSError as error:
                log.error("the zygote cannot be started: %s", error)  # noqa: TRY400
            await self._end()
            await asyncio.sleep(RESTART_S)

    async def _run(self) -> None:
        """Start one and wait for its end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, (self._home.root / "zygote.log").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - milliseconds, once
                [sys.executable, "-m", "zenos.runtime.zygote", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": inductor(self._home)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.setblocking(False)
        self._socket = ours
        loop = asyncio.get_running_loop()
        while said := await loop.sock_recv(ours, 4096):
            if said == b"ready":
                log.info("the zygote (pid %d) is ready", self._process.pid)
                self._ready.set()
        if not self._closing:
            log.warning("the zygote has died; starting another")

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
