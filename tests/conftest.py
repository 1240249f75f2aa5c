"""The suite leaves nothing behind: no process, no segment of memory, no temporary folder.

It may run in several processes (pytest-xdist), each with temporary folders of its own. They lie in
memory where there is room: what is proved of a write is its order and its end, which no disk is
needed for, and a disk takes milliseconds for each of the tens of thousands that are synced.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.crash import forked
from tests.disks import called_elsewhere
from tests.processes import mentioning, until

SEGMENTS = Path("/dev/shm")
ROOM_BYTES = 4 * 2**30
TEMPORARY = "PYTEST_DEBUG_TEMPROOT"  # where pytest puts its temporary folders

# Where tests take long, longest first. Begun last, one file would be what all others wait for.
LONG = ("docs/test_pages.py", "system/", "crash/", "runtime/", "serving/", "calls/", "workers/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long is run first; else the order stays as it is."""
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        place = item.path.relative_to(here).as_posix()
        return next((at for at, name in enumerate(LONG) if place.startswith(name)), len(LONG))

    items.sort(key=rank)


def pytest_configure() -> None:
    """Temporary folders into memory, unless somebody has said where."""
    if SEGMENTS.is_dir() and shutil.disk_usage(SEGMENTS).free > ROOM_BYTES and may_execute():
        os.environ.setdefault(TEMPORARY, str(SEGMENTS))


def may_execute() -> bool:
    """Whether programs can be put there, as some tests do."""
    return os.access(SEGMENTS, os.W_OK) and not os.statvfs(SEGMENTS).f_flag & os.ST_NOEXEC


def segments() -> set[Path]:
    """Segments of shared memory that have names; folders are none."""
    return {p for p in SEGMENTS.iterdir() if not p.is_dir()} if SEGMENTS.is_dir() else set()


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """No segment of memory is left. Asked by the process that leads: its workers run at once."""
    before = segments()
    result = yield
    if not hasattr(session.config, "workerinput") and (left := segments() - before):
        session.shouldfail = f"segments of shared memory are left: {left}"
        raise session.Failed(session.shouldfail)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that needs a mount runs where one can be made."""
    return called_elsewhere(pyfuncitem)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sockets, and whatever is put into a temporary folder, go into one of this session's own."""
    # Under nohup, or in the background, these are ignored, in all that the tests start as well.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    base = tmp_path_factory.getbasetemp()  # pytest's own, which it cleans up by itself
    with tempfile.TemporaryDirectory(prefix="zt-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(base / "inductor"))
        yield
        forked.server.close()
        ours = f"{base}/"  # pytest-1 is no part of pytest-12
        try:
            until(lambda: not mentioning(ours))
        except AssertionError as error:
            raise AssertionError(f"these are left: {mentioning(ours)}") from error
        assert list(Path(folder).iterdir()) == []


SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)


@pytest.fixture(autouse=True)
def signals_are_as_before() -> Iterator[None]:
    """What a test ignores, all processes of the tests after it would ignore, and never end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    changed = {n: now for n in SIGNALS if (now := signal.getsignal(n)) is not before[n]}
    for number in changed:
        signal.signal(number, before[number])
    still = signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert not changed, f"handlers of signals are left: {changed}"
    assert still == blocked
