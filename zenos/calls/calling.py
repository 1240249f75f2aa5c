"""`zenos.call`: a function as a task of its own, on a warm lane."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from zenos.calls import values, wire
from zenos.calls.finding import Wanted, folder
from zenos.calls.future import CallFuture
from zenos.calls.link import Link
from zenos.core import limits
from zenos.core.errors import InvalidError, ZenosError
from zenos.core.home import Home, given
from zenos.core.wording import shown

P = ParamSpec("P")
T = TypeVar("T")
ACCEPT_S: Final = 10.0  # that the end of a program waits until its calls are accepted


class _Links:
    """The links of this process, by what they want of their host."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a fork: the parent's links are its own."""
        self._lock = threading.Lock()
        self._all: weakref.WeakSet[Link] = weakref.WeakSet()  # also those that were forgotten here
        # And home, folder, sys.path, and what ZENOS_TOKEN says: on whose behalf.
        self._links: dict[tuple[Path, Wanted, str, tuple[str, ...], str | None], Link] = {}
        self.functions = values.Functions()

    def to(self, wanted: Wanted) -> Link:
        """The link to such a host. InvalidError for one that can't be; NoDaemonError where no
        daemon runs."""
        home, token = Home.default().root, given("ZENOS_TOKEN")
        key = (home, wanted, folder(), tuple(sys.path), token)
        try:
            link = self._links.get(key)
        except TypeError:  # a list in it, or such: what it is to be is looked at
            wanted.spec()
            raise
        if link is None:
            with self._lock:
                link = self._links.get(key)
                if link is None:
                    link = Link(wanted)
                    # Who still has one that is at rest may go on with it. Nobody else will.
                    rest = {k: v for k, v in self._links.items() if not v.is_at_rest}
                    self._links = {**rest, key: link}
                    self._all.add(link)
        return link

    def close(self, wait_s: float = ACCEPT_S) -> None:
        """The program ends: what was called durably is accepted first, if that can be."""
        with self._lock:
            self._links, gone = {}, list(self._all)
        end = time.monotonic() + wait_s  # of all together
        for link in gone:
            link.close(end - time.monotonic())


links: Final = _Links()
os.register_at_fork(after_in_child=links.forget)
atexit.register(links.close)


def call(
    function: Callable[..., T],
    /,
    *args: Any,
    cpu: float = 1,
    gpu: float = 0,
    memory: str | int | None = None,
    lanes: int | None = None,
    priority: int | str | None = None,
    durable: bool = True,
    idempotent: bool = False,
    retries: int | None = None,
    timeout_s: float | None = None,
    keep_alive_s: float = limits.CALLS_KEEP_ALIVE_S,
    kwargs: dict[str, Any] | None = None,
) -> CallFuture[T]:
    """Call a function on a warm lane, as a task; its result is to come.

    cpu, gpu, memory, priority: of the *host* on which it runs, a task that is started for the first
    call that wants such a one, shared by all that do, and ended `keep_alive_s` seconds after the
    last. It has `lanes` processes, else one for each core. kwargs: the function's named arguments.

    durable: once accepted (`wait_accepted`) the call is on the disk, and runs whatever dies.
    idempotent: it may run again when its lane or host has died, at most `retries` times (3); else
    it never runs twice, and ends with LaneError or WorkerError where nobody knows how far it came.
    timeout_s: for its run. NoDaemonError where no daemon runs, BusyError when too many are in
    flight, InvalidError for a function or arguments that can't be pickled.
    """
    _check_word(durable, "durable")
    again = retries_of(retries, idempotent=idempotent)
    limit_s = 0.0 if timeout_s is None else _limit_of(timeout_s)
    check_function(function)
    if kwargs is not None and not isinstance(kwargs, dict):
        raise InvalidError(f"cannot use {type(kwargs).__name__} as kwargs: give a dict")
    link = links.to(Wanted(cpu, gpu, memory, lanes, priority, keep_alive_s))
    try:
        arguments = values.arguments_of(args, kwargs or {})
    except ZenosError:
        raise
    except Exception as error:
        raise InvalidError(
            f"cannot send the arguments of {getattr(function, '__name__', function)}: {error}; "
            "give what can be pickled"
        ) from error
    flags = (wire.DURABLE if durable else 0) | (wire.IDEMPOTENT if idempotent else 0)
    return link.submit(links.functions.of(function), arguments, flags, again, limit_s)


def check_function(function: Any) -> None:
    """Raises InvalidError for what can't be called."""
    if not callable(function):
        raise InvalidError(f"cannot call {type(function).__name__}: give a function")


def _check_word(value: Any, name: str) -> None:
    """That it is true or false: any other would be taken for either."""
    if not isinstance(value, bool):
        raise InvalidError(f"cannot use {name}={shown(value)}: give True or False")


def _limit_of(timeout_s: Any) -> float:
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not (is_number and 0 < timeout_s <= limits.EXPECTED_S_MAX):  # NaN is neither
        most = f"{limits.EXPECTED_S_MAX:,.0f}"
        raise InvalidError(
            f"cannot use a timeout_s of {shown(timeout_s)}: give seconds, above 0 to {most}"
        )
    return float(timeout_s)


def retries_of(retries: int | None, *, idempotent: bool) -> int:
    """How often a call may begin again. InvalidError for one that may not."""
    _check_word(idempotent, "idempotent")
    if retries is None:
        return limits.CALL_RETRIES if idempotent else 0
    is_whole = isinstance(retries, int) and not isinstance(retries, bool)
    if not (idempotent and is_whole and 0 <= retries <= limits.RETRIES_MAX):
        raise InvalidError(
            f"cannot use retries={shown(retries)}: from 0 to {limits.RETRIES_MAX}, of a call "
            "with idempotent=True"
        )
    return retries
