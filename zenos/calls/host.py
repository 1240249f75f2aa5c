"""A host of calls: `python -P -m zenos.calls.host LANES KEEP_ALIVE_S KEY`, as a task's program.

One thread waits for whatever comes next: words of programs, results of lanes, deaths, times. Two
others help it: one takes connections over the bus (door.py), one syncs the journal (syncing.py).
What is accepted while a sync runs shares the next one. See dispatch.py for who runs what.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from zenos.calls import ends, wire
from zenos.calls.callers import READ_BYTES, Caller
from zenos.calls.dispatch import Dispatch
from zenos.calls.door import Door
from zenos.calls.journal import Journal
from zenos.calls.lanes import Work
from zenos.calls.syncing import Syncer, sync
from zenos.core import failpoints, limits
from zenos.core.errors import InvalidError, StorageError, WorkerError, ZenosError
from zenos.core.home import Home
from zenos.core.names import WANTED
from zenos.threads import reporting

PATHS_BYTES_MAX: Final = 24 * limits.KIB
HELD_BYTES_MAX: Final = 512 * limits.MIB  # of arguments; then programs aren't read from
SYNCED_HERE_MAX: Final = 8  # calls, if there are no others
FIRST_S: Final = 5.0  # for the first call
GONE_S: Final = 2.0  # for all programs together to read the last words
SYNCED_S: Final = 2.0  # for what is being synced as it ends
EXIT_TOLD: Final = 1  # it was told to end


class Host:
    """The loop, and what it does with each thing that happens."""

    def __init__(
        self, lanes: int, keep_alive_s: float, journal: Journal, wanted: Path, died: str = ""
    ) -> None:
        """died: why the host before did, if anybody knows; see ends.py."""
        self._poll = select.epoll()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._keep_alive_s = keep_alive_s
        self._wanted = wanted
        self._journal, self._before_died = journal, died
        self._syncer = Syncer(self._wake)
        self._unsynced: list[Work] = []
        self._memory = bytearray(READ_BYTES)  # for what programs say, of all the same
        self._callers: dict[int, Caller] = {}  # by descriptor
        self._by_name: dict[bytes, Caller] = {}
        self._dispatch = Dispatch(lanes, journal, self._poll, self._end)
        self._door = Door(self._wake)
        self._idle_since = time.monotonic()
        self._next_transient = 1 << 62
        self._told = False
        self._finished = False
        self._is_full = False
        self._was_called = False
        self._is_wanted = False  # others wait for its room
        self._poll.register(self._wake_read, select.EPOLLIN)
        reporting.watch(self)

    def run(self) -> int:
        """Until there is nothing to do for long enough, or it is told to end; the exit code."""
        signal.signal(signal.SIGTERM, self._hear_signal)
        signal.signal(signal.SIGUSR1, self._look)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._look()
        self._take_over()
        self._dispatch.start()
        self._door.start()
        try:
            while not self._told:
                self._turn()
                if self._is_idle_for_long():
                    break
        finally:
            self._leave()
        return EXIT_TOLD if self._told else 0

    # -- one turn

    def _turn(self) -> None:
        for fd, _ in self._poll.poll(self._wait_s()):
            if fd == self._wake_read:
                self._woken()
            elif fd in self._callers:
                self._hear(self._callers[fd])
            else:
                self._dispatch.hear(fd)
        self._sync()
        self._dispatch.step()
        full = self._dispatch.held_bytes > HELD_BYTES_MAX
        if full != self._is_full:  # who sends waits for room
            self._is_full = full
            for caller in self._callers.values():
                self._listen(caller)
        for caller in list(self._callers.values()):
            if caller.has_news() and not caller.is_writing:
                self._write(caller)
        # Who was told doesn't ask again, so what has ended is written down while it goes on.
        with suppress(OSError):  # what could not be is written with the next
            self._journal.flush()

    def _sync(self) -> None:
        """Have what was accepted made durable.

        Here, where nothing else is to be done meanwhile: to wake another thread, and to be woken by
        it, takes longer than many a disk.
        """
        if not self._unsynced or not self._syncer.is_free:
            return
        works, self._unsynced = self._unsynced, []
        try:
            fds = self._journal.to_sync()
        except OSError:  # no descriptor is left
            self._synced(works, self._journal.sync_here())
            return
        if len(works) > SYNCED_HERE_MAX or len(self._dispatch.works) > len(works):
            self._syncer.start(fds, works)
        else:
            self._synced(works, sync(fds))

    def _wait_s(self) -> float:
        now = time.monotonic()
        wake = min([self._dispatch.wake, *(caller.wake for caller in self._callers.values())])
        if not self._busy:
            wake = min(wake, self._idle_since + self._patience_s)
        return min(max(0.0, wake - now), 3600.0)

    @property
    def _busy(self) -> bool:
        return bool(self._dispatch.works or self._unsynced or not self._syncer.is_free)

    def _is_idle_for_long(self) -> bool:
        now = time.monotonic()
        if self._busy or self._door.arrived:
            self._idle_since = now
        return now >= self._idle_since + self._patience_s

    @property
    def _patience_s(self) -> float:
        """How long it stays without calls. At first, who has had it started is on the way."""
        if not self._was_called:
            return max(self._keep_alive_s, FIRST_S)
        return min(self._keep_alive_s, limits.CALLS_WANTED_S if self._is_wanted else math.inf)

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._wake_write, b"w")

    def _hear_signal(self, number: int, frame: object) -> None:
        self._told = True

    def _look(self, *_: object) -> None:
        """Whether others wait for its room: the daemon leaves word of that, and a signal."""
        self._is_wanted = self._wanted.exists()

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass
        while self._door.arrived:
            link = self._door.arrived.popleft()
            caller = Caller(link)
            try:
                self._poll.register(caller.fd, select.EPOLLIN)
            except OSError:
                caller.close()  # it comes again
                continue
            self._callers[caller.fd] = caller
        while self._syncer.done:
            works, error = self._syncer.done.popleft()
            self._synced(works, error)

    # -- programs

    def _hear(self, caller: Caller) -> None:
        if caller.is_writing:
            self._write(caller)
        try:
            messages = caller.read(self._memory)
            if messages is None:
                self._lose(caller)
                return
            for message in messages:
                self._take(caller, message)
        except ZenosError as error:
            caller.say(wire.Refused(error.code, error.message))
            with suppress(OSError):
                caller.flush()
            self._lose(caller)

    def _take(self, caller: Caller, message: Any) -> None:
        if isinstance(message, wire.Calls) and caller.name:
            self._take_calls(caller, message)
        elif isinstance(message, wire.Heard):
            caller.hear(message.count)
        elif isinstance(message, wire.Cancel) and caller.name:
            for id_ in message.ids:
                if not self._dispatch.cancel(caller.name, id_):
                    caller.tell(wire.Result(id_, wire.CANCELLED))
        elif isinstance(message, wire.Asking):
            caller.asks = True
        elif isinstance(message, wire.Resume) and caller.name:
            for id_ in message.ids:
                self._resume(caller, id_)
        elif isinstance(message, wire.Hello) and not caller.name:
            self._greet(caller, message)
        else:
            raise wire.FrameError("cannot take this now: say first who you are, once")

    def _greet(self, caller: Caller, hello: wire.Hello) -> None:
        if hello.build != wire.BUILD:
            raise InvalidError(
                f"cannot run functions of another Python: this program has {hello.build}, the host "
                f"{wire.BUILD}; restart the program, or 'zenos cancel' the host"
            )
        if sum(map(len, hello.paths)) > PATHS_BYTES_MAX:
            raise InvalidError("cannot use a sys.path that long: shorten it")
        caller.name = hello.caller
        self._idle_since = time.monotonic()
        earlier = self._by_name.get(hello.caller)
        if earlier is not None:  # it has broken off, and we have not heard of that yet
            self._lose(earlier)
        self._by_name[hello.caller] = caller
        self._journal.use(hello.paths)
        self._dispatch.use(hello.paths)
        caller.say(wire.Ready())

    def _take_calls(self, caller: Caller, message: wire.Calls) -> None:
        failpoints.passing("calls.received")
        self._was_called = True
        caller.hear(message.heard)
        for function in message.functions:
            caller.functions.say(function)
        try:
            self._add(caller, message.calls)
        finally:
            caller.functions.end_frame()

    def _add(self, caller: Caller, calls: list[wire.Call]) -> None:
        durable = []
        for call in calls:
            if call.key not in caller.functions:
                raise wire.FrameError("cannot run a function that was never said")
            if not call.flags & wire.DURABLE:
                self._next_transient += 1
                function = caller.functions[call.key]
                self._dispatch.add(Work(self._next_transient, caller.name, call, function, 0))
            elif self._dispatch.knows(caller.name, call.id):
                self._resume(caller, call.id)
            else:
                durable.append(call)
        if durable:
            try:
                works = self._journal.keep(caller.name, durable, caller.functions)
            except OSError as error:
                self._unkept(caller, [call.id for call in durable], error)
                return
            failpoints.passing("calls.written")
            self._dispatch.remember(works)
            self._unsynced += works

    def _synced(self, works: list[Work], error: OSError | None) -> None:
        failpoints.passing("calls.kept")
        if error is not None:
            works = [*works, *self._behind(works)]
        for work in works:
            caller = self._by_name.get(work.caller)
            if error is not None:
                self._dispatch.refuse(work, _unkept(error))
            else:
                work.is_kept = True
                if caller is not None:
                    caller.accept(work.call.id)
                self._dispatch.enqueue(work)

    def _behind(self, works: list[Work]) -> list[Work]:
        """What was appended since to segments of which nobody knows what is on the disk; that isn't
        to be found there, either. What comes next goes into another one."""
        segments = {work.segment for work in works}
        behind = [work for work in self._unsynced if work.segment in segments]
        self._unsynced = [work for work in self._unsynced if work.segment not in segments]
        self._journal.leave_segment()
        return behind

    def _unkept(self, caller: Caller, ids: list[int], error: OSError) -> None:
        for id_ in ids:
            caller.tell(wire.refused(_unkept(error), id_))

    def _resume(self, caller: Caller, id_: int) -> None:
        """How does a call end that was accepted before?"""
        if caller.is_told(id_):
            return  # it has ended since the program came back, before it could ask
        result = self._dispatch.resume(caller.name, id_)
        if result is not None:
            caller.tell(result, keep=True)
        elif self._dispatch.is_kept(caller.name, id_):
            caller.accept(id_)

    def _end(self, work: Work, result: wire.Result) -> None:
        """A call has ended."""
        failpoints.passing("calls.ended")
        caller = self._by_name.get(work.caller)
        if caller is not None:
            caller.tell(result, keep=bool(work.segment))
            if caller.reads_too_little:
                self._dispatch.hold(caller.name)
        elif work.segment:
            self._dispatch.past.keep(work.caller, result)

    def _write(self, caller: Caller) -> None:
        try:
            done = caller.flush()
        except OSError:
            self._lose(caller)
            return
        failpoints.passing("calls.told")
        if done == caller.is_writing:
            caller.is_writing = not done
            self._listen(caller)
        if not caller.reads_too_little:
            self._dispatch.release(caller.name)

    def _listen(self, caller: Caller) -> None:
        reads = 0 if self._is_full else select.EPOLLIN
        self._poll.modify(caller.fd, reads | (select.EPOLLOUT if caller.is_writing else 0))

    def _lose(self, caller: Caller) -> None:
        """A program is gone: what it had accepted goes on, the rest is nobody's."""
        if self._callers.pop(caller.fd, None) is None:
            return
        self._poll.unregister(caller.fd)
        caller.close()
        if self._by_name.get(caller.name) is caller:
            del self._by_name[caller.name]
            self._dispatch.release(caller.name)
            self._dispatch.abandon(caller.name)
            for result in caller.unheard:  # it may come back
                self._dispatch.past.keep(caller.name, result)

    # -- beginning and end

    def _take_over(self) -> None:
        """What an earlier host has accepted and not finished."""
        left = self._journal.read()
        left.died = self._before_died
        error = sync(self._journal.to_sync())  # it may have died before that
        for work in left.unfinished:
            work.is_kept = error is None
        uncertain = self._dispatch.take_over(left)
        if left.unfinished:
            said = f"{len(left.unfinished)} calls were left by an earlier host"
            more = f"{uncertain} of them may have begun and don't run again"
            print(f"{said}; {more}", file=sys.stderr)  # noqa: T201 - the task's log

    def _leave(self) -> None:
        self._finished = True
        self._door.close()
        if self._told:
            self._dispatch.refuse_all(WorkerError("cannot finish the call: its host was ended"))
        self._woken()
        self._say_bye(time.monotonic() + GONE_S)
        self._dispatch.close()
        self._syncer.close(SYNCED_S)
        with suppress(OSError):
            self._journal.flush()
            self._journal.close()

    def _say_bye(self, end: float) -> None:
        """Tell all programs what is left to be told, until then."""
        waiting = dict(self._callers)
        for caller in waiting.values():
            caller.say(wire.Bye())
        while waiting:
            poll = select.poll()
            for fd, caller in list(waiting.items()):
                try:
                    done = caller.flush()
                except OSError:
                    done = True
                if done:
                    del waiting[fd]
                else:
                    poll.register(fd, select.POLLOUT)
            left_s = end - time.monotonic()
            if left_s <= 0:
                break
            if waiting:
                poll.poll(1e3 * left_s)
        for caller in self._callers.values():
            caller.close()

    # -- for `zenos ps --threads`

    @property
    def finished(self) -> bool:
        """Whether it is about to end."""
        return self._finished

    def snapshot(self, threads_max: int = limits.THREADS_SHOWN_MAX) -> Any:
        """Its lanes and calls, as a pool's; asked for from another thread."""
        return self._dispatch.snapshot(threads_max)


def _unkept(error: OSError) -> StorageError:
    return StorageError(f"cannot keep the call: {error.strerror}; it does not run")


def main() -> int:
    """Serve calls; the exit code."""
    lanes, keep_alive_s, key = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    home = Home(Path(os.environ["ZENOS_TASK_HOME"]))
    task, generation = os.environ["ZENOS_TASK"], int(os.environ["ZENOS_GENERATION"])
    run = home.run(task, generation)
    try:
        journal = Journal(home.calls / key, ends.owner(task, generation))
        died = ends.why_died(home, journal.before)
        return Host(lanes, keep_alive_s, journal, run / WANTED, died).run()
    except ZenosError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the task's log
        return 1


if __name__ == "__main__":
    sys.exit(main())
