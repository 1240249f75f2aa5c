"""Starts, watches, stops and recovers workers on this machine."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from zenos.core import failpoints, limits, output, processes
from zenos.core.config import Config
from zenos.core.errors import RefusedError
from zenos.core.events import (
    Event,
    StartFailed,
    WorkerExited,
    WorkerLost,
    WorkerPaused,
    WorkerStarted,
)
from zenos.core.home import Home
from zenos.core.resources import parse_size
from zenos.core.specs import CallSpec, ProgramSpec, program_of
from zenos.core.task import Outcome, Task
from zenos.core.watch import STOPPING
from zenos.kernel.supervision import EXIT_SUSPENDED
from zenos.task import YIELD
from zenos.workers import freezing, runs, strays
from zenos.workers.fork_server import ForkServer
from zenos.workers.freezing import How
from zenos.workers.limits import Cgroups
from zenos.workers.runs import Found
from zenos.workers.syncing import LateSyncs

log = logging.getLogger(__name__)
KILL_AGAIN_S: Final = 5.0
# How often one generation is forked: a fork server may die as it forks, before anything has run.
FORKS_MAX: Final = 4
# A shim's pipe closes a moment before its lock; one that is locked for longer is another shim's.
ENDING_LOOKS, ENDING_LOOK_S = 40, 0.005
# From one look to the next, each time twice as long, whether a killed worker's groups are empty.
GROUPS_AGAIN_S, GROUPS_AGAIN_S_MAX = 0.05, 60.0


def _yields(task: Task) -> str:
    work = task.spec.work
    return work.yields if isinstance(work, ProgramSpec) else "none"


def _odd(error: Exception) -> bool:
    """Whether an error is one that nobody has thought of, and the log should have it whole."""
    return not isinstance(error, OSError | RuntimeError)


def _with_lost_output(outcome: Outcome, directory: Path) -> Outcome:
    """With what of the output found no room, where the log could not say it either."""
    lost_bytes = (runs.read_record(directory, "exit") or {}).get("lost_bytes")
    if not isinstance(lost_bytes, int) or lost_bytes <= 0:
        return outcome
    tail = outcome.log_tail + output.notice(lost_bytes, "the disk was full")
    return msgspec.structs.replace(outcome, log_tail=tail)


class Handle:
    """A generation that is being watched."""

    def __init__(self, task: str, generation: int, directory: Path, yields: str = "none") -> None:
        self.task = task
        self.yields = yields
        self.generation = generation
        self.directory = directory
        self.pidfd: int | None = None
        self.notify: int | None = None
        self.forked: tuple[ForkServer, Path] | None = None  # by whom, for which spec
        self.forks = 0
        self.heard = b""
        self.failure = ""  # what its shim said of why it could not go on
        self.started = False
        self.stopping: tuple[float, bool] | None = None
        self.timers: list[asyncio.TimerHandle] = []


class LocalExecutor:
    """Workers on this machine. Belongs to the daemon's event loop."""

    def __init__(
        self,
        home: Home,
        config: Config,
        post: Callable[[Event], None],
        zygote: ForkServer,
        launcher: ForkServer,
        cgroups: Cgroups | None = None,
    ) -> None:
        self._home = home
        self._cache_bytes_max = parse_size(config.cache_bytes_max, "cache_bytes_max")
        self._post = post
        self._zygote = zygote
        self._launcher = launcher
        self.cgroups = cgroups or Cgroups.detect(config, home.id)
        self._handles: dict[tuple[str, int], Handle] = {}
        self._loop = asyncio.get_running_loop()
        self._syncs = LateSyncs(home)

    # -- starting

    async def start(self, task: Task) -> None:
        """Write the spec and have a shim forked: for a program by the launcher, else the zygote."""
        key = (task.id, task.generation)
        if key in self._handles:
            return
        handle = Handle(*key, self._home.run(*key), _yields(task))
        self._handles[key] = handle
        failpoints.passing("worker.start.begin")
        try:
            await self._spawn(task, handle)
        except Exception as error:
            if self._handles.get(key) is not handle:
                return  # given up before
            # Whatever it is: a task of which nothing is heard would hold its share for ever.
            log.warning("%s cannot be started: %s", task.id, error, exc_info=_odd(error))
            self._unwatch(handle)
            self._conclude(handle, str(error))
            return
        failpoints.passing("worker.start.forked")

    async def _spawn(self, task: Task, handle: Handle) -> None:
        if task.allocation is not None and task.allocation.others:
            raise RefusedError(
                f"cannot run {task.id} on {len(task.allocation.parts)} nodes: the workers of one "
                "training must lie on one machine; ask for fewer of them"
            )
        groups = await asyncio.to_thread(
            self.cgroups.make,
            task.id,
            task.generation,
            task.granted,
            together=not isinstance(task.spec.work, CallSpec),
        )
        spec = runs.make_spec(self._home, task, groups, self._cache_bytes_max)
        path = await asyncio.to_thread(runs.write_spec, self._home, task, spec)
        failpoints.passing("worker.start.spec")
        program = program_of(task.spec.work) is not None
        handle.forked = (self._launcher if program else self._zygote, path)
        await self._fork(handle, *handle.forked)

    async def _fork(self, handle: Handle, server: ForkServer, path: Path) -> None:
        handle.forks += 1
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        handle.notify = ours
        wait_s = limits.START_TIMEOUT_S if handle.stopping is None else handle.stopping[0]
        handle.timers.append(self._loop.call_later(wait_s, self._give_up, handle))
        try:
            await server.fork(path, theirs)
        finally:
            os.close(theirs)
        if handle.notify is not None:  # else it was given up meanwhile
            self._loop.add_reader(ours, self._hear, handle)

    async def _forked_again(self, handle: Handle) -> bool:
        """Fork once more where nothing was claimed, and nobody said why: the fork server has died.

        So the task loses nothing by it: it is the same generation, of which nothing has run.
        """
        key = (handle.task, handle.generation)
        if (
            handle.forked is None
            or handle.forks >= FORKS_MAX
            or handle.failure
            or handle.stopping is not None
            or self._handles.get(key) is not handle
            or runs.look(self._home, *key) is not Found.NOTHING
        ):
            return False
        log.warning("%s was not started by a process that has died; trying again", handle.task)
        for timer in handle.timers:
            timer.cancel()
        try:
            await self._fork(handle, *handle.forked)
        except OSError as error:
            self._unwatch(handle)
            handle.failure = str(error)
        return handle.notify is not None

    def _give_up(self, handle: Handle) -> None:
        """No shim has come for it: take the directory, so that a late one finds it taken."""
        if handle.started or handle.notify is None:
            return
        try:
            handle.directory.mkdir(mode=0o700)
            (handle.directory / "refused").touch(mode=0o600)
        except OSError:
            return  # one has come after all
        self._unwatch(handle)
        reason = f"nothing was heard of it for {limits.START_TIMEOUT_S:g} s"
        if handle.stopping is not None:
            reason = "it was told to end before it had started"
        self._conclude(handle, reason)

    def _hear(self, handle: Handle) -> None:
        """A line of the shim, or its end."""
        if handle.notify is None:
            return
        data = os.read(handle.notify, 4096)
        if not data:
            self._unwatch(handle)
            self._loop.create_task(self._after_end(handle))
            return
        *lines, handle.heard = (handle.heard + data).split(b"\n")
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word == b"started":
                self._started(handle, int(rest))
            elif word == b"failed":
                handle.failure = rest.decode(errors="replace")

    def _started(self, handle: Handle, pid: int) -> None:
        handle.started = True
        self._post(WorkerStarted(task=handle.task, generation=handle.generation, pid=pid))
        if handle.stopping is not None:
            self._signal(handle, *handle.stopping)

    # -- ending

    async def _after_end(self, handle: Handle) -> None:
        for _ in range(ENDING_LOOKS):
            if runs.look(self._home, handle.task, handle.generation) is not Found.ALIVE:
                break
            await asyncio.sleep(ENDING_LOOK_S)
        if await self._forked_again(handle):
            return
        if self._handles.get((handle.task, handle.generation)) is handle:  # not given up meanwhile
            self._conclude(handle, handle.failure or "its shim ended before it began")

    def _conclude(self, handle: Handle, reason: str) -> None:
        """A shim has ended: post what its directory says."""
        task, generation = handle.task, handle.generation
        for timer in handle.timers:
            timer.cancel()
        try:
            found = runs.look(self._home, task, generation)
            if found is Found.ALIVE:
                self._adopt(handle)
                return
            if found is not Found.ENDED:
                self._kill_rest(handle)
            self._remove_groups(task, generation)
            event = self._event(handle, found, reason)
        except Exception:
            # Something must be said, or the task would hold its share for ever.
            log.exception("what %s has left cannot be read", task)
            event = WorkerLost(
                task=task, generation=generation, reason="what it has left cannot be read"
            )
        self._handles.pop((task, generation), None)
        self._post(event)

    def _remove_groups(self, task: str, generation: int, wait_s: float = GROUPS_AGAIN_S) -> None:
        """At once where its shim has ended its worker; else what was killed has yet to be gone."""
        if not self.cgroups.remove(task, generation) and wait_s < GROUPS_AGAIN_S_MAX:
            self._loop.call_later(wait_s, self._remove_groups, task, generation, 2 * wait_s)

    def _tidy_groups(self, tasks: Iterable[tuple[str, int]]) -> None:
        """Remove what ended generations have left. tasks: with generations that may be alive."""
        self.cgroups.tidy({f"{task}-{generation}" for task, generation in tasks})

    def _event(self, handle: Handle, found: Found, reason: str) -> Event:
        task, generation = handle.task, handle.generation
        match found:
            case Found.ENDED:
                outcome = _with_lost_output(runs.outcome(handle.directory), handle.directory)
                if outcome.exit_code == EXIT_SUSPENDED:
                    self._syncs.saved(task)
                return WorkerExited(
                    task=task,
                    generation=generation,
                    outcome=outcome,
                    saved_step=self._home.saved_step(task),
                )
            case Found.LOST:
                reason = handle.failure or "its shim was killed"
                tail = runs.log_tail(handle.directory / "log")
                return WorkerLost(
                    task=task,
                    generation=generation,
                    reason=reason,
                    log_tail=tail,
                    saved_step=self._home.saved_step(task),
                )
            case _:
                return StartFailed(task=task, generation=generation, reason=reason)

    def _kill_rest(self, handle: Handle) -> None:
        """The shim is dead without having ended its worker: end what is left of its session."""
        self.cgroups.kill(handle.task, handle.generation)
        strays.end_session(handle.directory)

    # -- stopping

    async def stop(self, task: str, generation: int, grace_s: float, save: bool) -> None:
        """SIGTERM to the group now, or as soon as it has started; SIGKILL after the grace time."""
        handle = self._handles.get((task, generation))
        if handle is None:
            return
        first = handle.stopping is None
        handle.stopping = (grace_s, save)
        if handle.started:
            if first:
                self._signal(handle, grace_s, save)
            else:  # who was to save first, and is cancelled now, has less time
                if not save and handle.yields != "none":
                    self._kill(handle, signal.SIGTERM)  # it has heard of saving alone
                self._kill_within(handle, grace_s)
        elif first and handle.notify is not None:
            handle.timers.append(self._loop.call_later(grace_s, self._give_up, handle))

    def _signal(self, handle: Handle, grace_s: float, save: bool) -> None:
        log.info("stopping %s, grace %g s%s", handle.task, grace_s, ", saving" if save else "")
        with suppress(OSError):  # on a full disk what a program leaves behind has less time
            (handle.directory / STOPPING).touch(mode=0o600)
        if save and handle.yields == "helper":
            with suppress(OSError):
                (handle.directory / YIELD).touch(mode=0o600)
        elif save and handle.yields == "signals":
            for pid in freezing.members(handle.directory):
                if processes.handles(pid, signal.SIGUSR1):  # a shell around it would die of it
                    processes.kill(pid, signal.SIGUSR1)
        else:
            self._kill(handle, signal.SIGTERM)
        self._thaw(handle)  # what waits for it there is heard as it goes on
        self._kill_within(handle, grace_s)

    def _kill_within(self, handle: Handle, grace_s: float) -> None:
        kill = self._loop.call_later(grace_s, self._kill, handle, signal.SIGKILL)
        last = self._loop.call_later(grace_s + KILL_AGAIN_S, self._kill_shim, handle)
        handle.timers += [kill, last]

    def _kill(self, handle: Handle, number: signal.Signals) -> None:
        pid = runs.process(handle.directory, "started")
        if pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
        if number is signal.SIGKILL:
            self.cgroups.kill(handle.task, handle.generation)

    def _kill_shim(self, handle: Handle) -> None:
        """A worker that not even SIGKILL has ended (stuck in a device): let its shim go."""
        pid = runs.process(handle.directory, "shim")
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def running(self) -> list[Path]:
        """The run directories of all generations that are watched."""
        return [handle.directory for handle in self._handles.values()]

    # -- pausing

    async def pause(self, task: str, generation: int, how: How, grace_s: float) -> None:
        """Freeze all of a program's processes, and post it once that is so."""
        handle = self._handles.get((task, generation))
        if handle is None or handle.stopping is not None:
            return
        with suppress(OSError):  # its directory is gone: its end is being told
            if await freezing.freeze(
                self.cgroups, handle.directory, task, generation, how, grace_s
            ):
                self._post(WorkerPaused(task=task, generation=generation))

    async def resume(self, task: str, generation: int) -> None:
        """Thaw all of a program's processes."""
        handle = self._handles.get((task, generation))
        if handle is not None:
            self._thaw(handle)

    def _thaw(self, handle: Handle) -> None:
        if freezing.thaw(self.cgroups, handle.directory, handle.task, handle.generation):
            log.info("%s goes on", handle.task)

    def make_room(self, task: str, generation: int, *, on: bool) -> None:
        """Tell a host of calls whether others wait for its room."""
        handle = self._handles.get((task, generation))
        if handle is not None:
            runs.tell_wanted(handle.directory, on=on)

    # -- recovering

    async def recover(self, tasks: Sequence[Task], next_task: int) -> None:
        """Look at each task's run directory: adopt, finish, start again, or report as lost.

        next_task: the number of the next one. What there is of that and later ones is no task's.
        """
        strays.set_aside(self._home, next_task, self.cgroups.end)
        self._tidy_groups((task.id, task.generation) for task in tasks)
        for task in tasks:
            self._recover(task)

    def _recover(self, task: Task) -> None:
        """Look at one; what can't even be looked at doesn't keep the others down."""
        found = runs.look(self._home, task.id, task.generation)
        log.info("%s generation %d: %s", task.id, task.generation, found.value)
        if found is Found.NOTHING:
            self._loop.create_task(self.start(task))
            return
        key = (task.id, task.generation)
        handle = Handle(*key, self._home.run(*key), _yields(task))
        self._handles[key] = handle
        if found is Found.ALIVE:
            self._adopt(handle)
        else:
            self._conclude(handle, "its shim was killed before it began")

    def _adopt(self, handle: Handle) -> None:
        """Watch a shim that isn't our child: by pidfd."""
        self._handles[handle.task, handle.generation] = handle
        pid = runs.process(handle.directory, "shim")
        try:
            if pid is None:
                raise ProcessLookupError
            handle.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            # It ended between our looks.
            self._loop.create_task(self._after_end(handle))
            return
        self._loop.add_reader(handle.pidfd, self._gone, handle)
        worker = runs.process(handle.directory, "started")
        if worker is not None:
            self._started(handle, worker)
        else:
            self._loop.call_later(0.05, self._look_again, handle)

    def _look_again(self, handle: Handle) -> None:
        """An adopted shim hadn't started its worker yet."""
        if handle.pidfd is None or handle.started:
            return
        worker = runs.process(handle.directory, "started")
        if worker is not None:
            self._started(handle, worker)
        else:
            self._loop.call_later(0.05, self._look_again, handle)

    def _gone(self, handle: Handle) -> None:
        self._unwatch(handle)
        self._loop.create_task(self._after_end(handle))

    def _unwatch(self, handle: Handle) -> None:
        for name in ("notify", "pidfd"):
            fd = getattr(handle, name)
            if fd is not None:
                self._loop.remove_reader(fd)
                os.close(fd)
                setattr(handle, name, None)

    # -- the rest

    def forget(self, tasks: Sequence[str]) -> None:
        """Remove run directories, logs and checkpoints."""
        for task in tasks:
            shutil.rmtree(self._home.runs / task, ignore_errors=True)
        self.discard(tasks)

    def discard(self, tasks: Sequence[str]) -> None:
        """Remove checkpoints; a program has none."""
        for task in tasks:
            shutil.rmtree(self._home.checkpoint(task), ignore_errors=True)

    def authenticate(self, task: str, generation: int, token: str) -> bool:
        """Only generations that are being watched may use the bus."""
        if (task, generation) not in self._handles:
            return False
        known = runs.read_token(self._home, task, generation)
        return known is not None and hmac.compare_digest(known.encode(), token.encode())

    async def close(self) -> None:
        """Stop watching. Workers go on, and the next daemon adopts them."""
        for handle in self._handles.values():
            for timer in handle.timers:
                timer.cancel()
            self._unwatch(handle)
        self._tidy_groups(self._handles)
        self._handles.clear()
        await self._syncs.close()
        await asyncio.to_thread(self.cgroups.close)
