"""Run directories, as the daemon sees them: what it writes for the shim, and what the shim left."""

from __future__ import annotations

import enum
import errno
import fcntl
import json
import os
import secrets
import signal
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from zenos import __version__
from zenos.core import durable, failpoints, limits, processes, shim
from zenos.core.home import Home
from zenos.core.names import WANTED
from zenos.core.resources import parse_size, show_size
from zenos.core.specs import CallSpec, program_of
from zenos.core.task import Kind, Outcome, Task
from zenos.workers import nodes
from zenos.workers.limits import OPEN_FILES

# What of the daemon's own environment a program gets to see.
KEPT_VARIABLES: Final = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "HF_ENDPOINT", "HF_HOME"}
    | {"HF_HUB_OFFLINE", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "LD_LIBRARY_PATH"}
    | {
        name
        for n in ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
        for name in (n, n.upper())
    }
)
# By which libraries learn how many threads to start.
THREAD_VARIABLES: Final = tuple(
    f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "RAYON", "VECLIB")
)


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a shim is told, as JSON in `runs/TASK/GENERATION.json`.

    directory: the run directory to claim; record: the task, for torch work; memory_limit: bytes, 0
    for none; cgroups: groups that the worker enters; outlives_kills: see core/memory.py;
    open_files: its soft limit; token: with which it may use the bus; cache_bytes_max: of what torch
    work leaves in the cache.
    """

    version: str = __version__
    home: str
    directory: str
    token: str
    argv: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    record: Task | None = None
    memory_limit: int = 0
    cgroups: list[str] = []
    outlives_kills: bool = False
    cache_bytes_max: int
    log_bytes_max: int = limits.LOG_BYTES_MAX
    open_files: int = OPEN_FILES


class Found(enum.Enum):
    """What a run directory says."""

    NOTHING = "nothing"  # no shim has claimed it: nothing of the task has run
    ALIVE = "alive"  # its shim lives
    ENDED = "ended"  # the shim wrote how it ended
    UNSTARTED = "unstarted"  # its shim died before the worker was let go: nothing has run
    LOST = "lost"  # its shim died, and nobody knows how the worker ended


def spec_path(home: Home, task: str, generation: int) -> Path:
    """Beside the run directory."""
    return home.runs / task / f"{generation}.json"


def environment(home: Home, task: Task) -> dict[str, str]:
    """A program's environment: scrubbed, what the task asks for, and what zenos says."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or name.startswith("LC_")
    }
    program = program_of(task.spec.work)
    asked = program.env if program is not None else {}
    if task.kind is Kind.CALL and failpoints.VARIABLE in os.environ:  # zenos' own code, as shims
        asked = {failpoints.VARIABLE: os.environ[failpoints.VARIABLE]}
    held = task.allocation.resources if task.allocation else task.granted
    # Else each library starts as many as the machine has cores, in every task.
    threads = dict.fromkeys(THREAD_VARIABLES, str(max(1, -(-held.cpu // 1000))))
    shares = sorted(task.allocation.shares) if task.allocation else []
    numbers = nodes.device_numbers() if shares else ()
    # Virtual ones have no numbers but their own.
    devices = ",".join(str(numbers[n] if n < len(numbers) else n) for n in shares)
    return {
        **kept,
        **threads,
        "TOKENIZERS_PARALLELISM": "true" if held.cpu > 1000 else "false",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": devices,
        "PYTHONUNBUFFERED": "1",
        **asked,
        # By which a program finds the bus; its token stands in a file there.
        "ZENOS_HOME": str(home.root),
        "ZENOS_CPU": f"{held.cpu / 1000:g}",
        "ZENOS_TASK": task.id,
        "ZENOS_TASK_HOME": str(home.root),  # stays when the program goes to a home of its own
        "ZENOS_GENERATION": str(task.generation),
        **_of_array(task),
    }


def _of_array(task: Task) -> dict[str, str]:
    if task.array is None:
        return {}
    return {
        "ZENOS_ARRAY": task.array.id,
        "ZENOS_ARRAY_INDEX": str(task.array.index),
        "ZENOS_ARRAY_COUNT": str(task.array.count),
    }


def inductor(home: Home) -> str:
    """Where compiled models are kept: else it is a folder in /tmp that nobody removes."""
    return str(home.cache / "inductor")


def make_spec(
    home: Home, task: Task, cgroups: list[str], cache_bytes_max: int = parse_size(limits.CACHE_SIZE)
) -> RunSpec:
    """The spec of a task's present generation."""
    program = program_of(task.spec.work)
    return RunSpec(
        home=str(home.root),
        directory=str(home.run(task.id, task.generation)),
        token=secrets.token_hex(16),
        argv=program.argv if program is not None else [],
        env=environment(home, task)
        | ({} if program is not None else {"TORCHINDUCTOR_CACHE_DIR": inductor(home)}),
        cwd=(program.cwd or str(Path.home())) if program is not None else None,
        record=None if program is not None else task,
        memory_limit=task.granted.memory,
        cgroups=cgroups,
        outlives_kills=isinstance(task.spec.work, CallSpec),
        cache_bytes_max=cache_bytes_max,
    )


def write_spec(home: Home, task: Task, spec: RunSpec) -> Path:
    """Write the spec; the token of one that is there already stays."""
    path = spec_path(home, task.id, task.generation)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    token = read_token(home, task.id, task.generation)
    if token is not None:
        # Of a daemon that is gone, as are its control groups. A shim that it had forked may still
        # claim the directory, and has that token.
        spec = msgspec.structs.replace(spec, token=token)
    # By `json`: variables that are no UTF-8 go into it as Python has them, and come out so.
    durable.write_file(path, json.dumps(msgspec.to_builtins(spec)).encode())
    return path


def read_token(home: Home, task: str, generation: int) -> str | None:
    """The token of a generation; None when there is no such generation."""
    spec = _record(spec_path(home, task, generation)) or {}
    token = spec.get("token")
    return token if isinstance(token, str) else None


def look(home: Home, task: str, generation: int) -> Found:
    """What became of a generation."""
    directory = home.run(task, generation)
    if not directory.exists():
        return Found.NOTHING
    if is_locked(directory / "lock"):
        return Found.ALIVE
    if (directory / "exit").exists():
        return Found.ENDED
    return Found.LOST if (directory / "started").exists() else Found.UNSTARTED


def is_locked(path: Path) -> bool:
    """Whether a shim holds the lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def process(directory: Path, name: str) -> int | None:
    """The pid in `shim` or `started`, if that very process is alive: same start, same boot."""
    record = read_record(directory, name)
    if record is None or record.get("boot_id") != shim.boot_id():
        return None
    pid = record.get("pid")
    if not isinstance(pid, int) or shim.start_time(pid) != record.get("start_time"):
        return None
    return pid


def tell_wanted(directory: Path, *, on: bool) -> None:
    """Leave word in a run directory that others wait for its room, and wake who looks for that.

    One that doesn't catch the signal yet looks before it does anything else.
    """
    with suppress(OSError):  # it is gone, or the disk is full: then it stays for its keep-alive
        if on:
            (directory / WANTED).touch(mode=0o600)
        else:
            (directory / WANTED).unlink(missing_ok=True)
    pid = process(directory, "started")
    if pid is not None and processes.handles(pid, signal.SIGUSR1):
        processes.kill(pid, signal.SIGUSR1)


def outcome(directory: Path) -> Outcome:
    """How a worker ended, from what its shim and itself have left.

    Any of it may be anything: the worker can write there.
    """
    record = read_record(directory, "exit") or {}
    said = read_record(directory, "error.json") or {}
    error = said.get("message")
    peak, cpu_s = _number(record.get("memory_peak")), record.get("cpu_s")
    if record.get("oom"):
        used, limit = peak or 0, _number(record.get("limit")) or 0
        error = (
            f"cannot allocate more memory: used {show_size(used)} of {show_size(limit)}; "
            "ask for more with --memory"
        )
    return Outcome(
        exit_code=_number(record.get("exit_code")),
        signal=_number(record.get("signal")),
        error=error[: limits.ERROR_CHARS_MAX] if isinstance(error, str) and error else None,
        code=code[:64] if isinstance(code := said.get("code"), str) else None,
        oom=bool(record.get("oom")),
        memory_peak=peak,
        cpu_s=cpu_s if isinstance(cpu_s, float) else None,
        log_tail=log_tail(directory / "log"),
        result=read_record(directory, "result.json"),
    )


def _number(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 2**63 else None


def read_record(directory: Path, name: str) -> dict[str, Any] | None:
    """A JSON object in a run directory; None when there is none, or none that can be stored."""
    return _record(directory / name)


def _record(path: Path) -> dict[str, Any] | None:
    try:
        with _open_file(path) as file:
            raw = file.read(limits.MIB + 1)
        record = json.loads(raw) if len(raw) <= limits.MIB else None
        # What the store could not write must not get as far as that: half a character, for one.
        if not isinstance(record, dict) or not msgspec.json.decode(msgspec.json.encode(record)):
            return None
    except (OSError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError):
        return None
    return record


def _open_file(path: Path) -> BinaryIO:
    """A file to read; OSError for a link, a pipe or a device, which could be anything or block."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return os.fdopen(fd, "rb")


def log_tail(path: Path) -> str:
    """The end of a log, never cut inside a character; it may reach into what was set aside."""
    raw = _end_of(path, limits.LOG_TAIL_BYTES)
    if len(raw) < limits.LOG_TAIL_BYTES:
        raw = _end_of(path.with_name(f"{path.name}.1"), limits.LOG_TAIL_BYTES - len(raw)) + raw
    while raw and 0x80 <= raw[0] < 0xC0:  # the rest of a UTF-8 character
        raw = raw[1:]
    return raw.decode("utf-8", "replace").replace("\0", "\ufffd")


def _end_of(path: Path, size: int) -> bytes:
    try:
        with _open_file(path) as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read(size)
    except OSError:
        return b""
