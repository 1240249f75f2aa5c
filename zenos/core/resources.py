"""Resource vectors, held as integers: millicores, milli-GPUs and bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Final, Self

import msgspec

from zenos.core import limits
from zenos.core.fields import about
from zenos.core.wording import FieldError

_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([kKmMgGtTpPeE]?)(i?)[bB]?\s*$")
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}


def parse_share(value: float | str, what: str, milli_max: int) -> int:
    """Thousandths of a device or core from what people write: `0.5`, `2`, `"1.5"`.

    Raises FieldError for anything negative, not finite, absurdly large or finer than 1/1000.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise FieldError(
            f"cannot read {what} {repr(value)[:64]}: give a number such as 0.5 or 2",
            what,
        ) from None
    except OverflowError:  # a whole number that no float holds
        number = math.inf
    if isinstance(value, bool) or math.isnan(number) or number < 0:
        raise FieldError(f"cannot use {what} {number}: give a number of 0 or more", what)
    if number * 1000 > milli_max:
        raise FieldError(
            f"cannot use {what} {number:g}: at most {milli_max // 1000} are allowed", what
        )
    milli = round(number * 1000)
    if number > 0 and milli == 0:
        raise FieldError(f"cannot use {what} {value!r}: the smallest share is 0.001", what)
    return milli


def parse_size(value: int | float | str, what: str = "memory") -> int:
    """Bytes from `536870912`, `"512MiB"`, `"2GiB"` or `"2GB"` (decimal when without the i).

    Raises FieldError for what is no size, for more than any machine has, and for what is above
    nothing and below a byte: it would become 0, which is no limit.
    """
    if isinstance(value, bool):
        raise FieldError(f"cannot read {what} {value!r}: write a size such as 512MiB or 2GiB", what)
    if isinstance(value, int | float):
        if (isinstance(value, float) and not math.isfinite(value)) or value < 0:
            # Python shows no very long whole number.
            shown = value if isinstance(value, float) or value > -1e30 else "that small"
            raise FieldError(
                f"cannot use {what} {shown}: a size is a number of 0 or more bytes", what
            )
        more_than_none, size = value > 0, int(value)
    else:
        match = _SIZE.match(value) if isinstance(value, str) and len(value) <= 64 else None
        if match is None:
            raise FieldError(
                f"cannot read {what} {repr(value)[:64]}: write a size such as 512MiB or 2GiB", what
            )
        base = 1024 if match[3] else 1000
        number = float(match[1])
        more_than_none = number > 0
        size = round(number * base ** _POWER[match[2].lower()])
    if more_than_none and size == 0:
        raise FieldError(
            f"cannot use {what} {value!r}: that is less than a byte; write a size such as 512MiB",
            what,
        )
    if size > limits.MEMORY_BYTES_MAX:
        raise FieldError(f"cannot use so much {what}: more than any machine has", what)
    return size


def show_size(size: int) -> str:
    """A size for people: `1.5 GiB`."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) or unit == "B" else f"{value:.1f} {unit}"


def show_share(milli: int) -> str:
    """Thousandths for people: 500 → `0.5`, 2000 → `2`."""
    return f"{milli / 1000:g}"


def show_units(milli: int, word: str) -> str:
    """The same of what is counted: `1 GPU`, `0.5 GPUs`, `2 GPUs`."""
    return f"{show_share(milli)} {word}{'' if milli == 1000 else 's'}"


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What a task wants, holds, or a node has."""

    cpu: Annotated[int, about("Millicores.")] = 0
    gpu: Annotated[int, about("Milli-GPUs: below 1000, or whole thousands.")] = 0
    memory: Annotated[int, about("Bytes.")] = 0
    gpu_memory: Annotated[int, about("Bytes.")] = 0

    @classmethod
    def of(
        cls,
        cpu: float | str = 0,
        gpu: float | str = 0,
        memory: int | float | str = 0,
        gpu_memory: int | float | str = 0,
    ) -> Self:
        """From what people write: `Resources.of(cpu=0.5, gpu=1, memory="2GiB")`."""
        return cls(
            cpu=parse_share(cpu, "cpu", limits.CPU_MILLI_MAX),
            gpu=parse_share(gpu, "gpu", limits.GPU_MILLI_MAX),
            memory=parse_size(memory, "memory"),
            gpu_memory=parse_size(gpu_memory, "gpu_memory"),
        )

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            cpu=self.cpu + other.cpu,
            gpu=self.gpu + other.gpu,
            memory=self.memory + other.memory,
            gpu_memory=self.gpu_memory + other.gpu_memory,
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            cpu=self.cpu - other.cpu,
            gpu=self.gpu - other.gpu,
            memory=self.memory - other.memory,
            gpu_memory=self.gpu_memory - other.gpu_memory,
        )

    def times(self, count: int) -> Resources:
        """What `count` such requests are together."""
        return Resources(
            cpu=count * self.cpu,
            gpu=count * self.gpu,
            memory=count * self.memory,
            gpu_memory=count * self.gpu_memory,
        )

    def without(self, held: Resources) -> Resources:
        """What is left when `held` is kept back: of each at most all that there is."""
        return Resources(
            cpu=self.cpu - min(held.cpu, max(self.cpu, 0)),
            gpu=self.gpu - min(held.gpu, max(self.gpu, 0)),
            memory=self.memory - min(held.memory, max(self.memory, 0)),
            gpu_memory=self.gpu_memory - min(held.gpu_memory, max(self.gpu_memory, 0)),
        )

    def fits_in(self, room: Resources) -> bool:
        """Whether every component is within `room`; of what isn't wanted there may be too little.

        There is less than nothing where others have taken what was given out.
        """
        return (
            (self.cpu <= room.cpu or not self.cpu)
            and (self.gpu <= room.gpu or not self.gpu)
            and (self.memory <= room.memory or not self.memory)
            and (self.gpu_memory <= room.gpu_memory or not self.gpu_memory)
        )

    @property
    def plain(self) -> Resources:
        """The amounts alone, wherever they have to be."""
        return self

    def check(self) -> None:
        """Raises FieldError for what no task can want, on whatever node."""
        for what, amount, most in (
            ("memory", self.memory, limits.MEMORY_BYTES_MAX),
            ("gpu_memory", self.gpu_memory, limits.MEMORY_BYTES_MAX),
            ("cpu", self.cpu, limits.CPU_MILLI_MAX),
            ("gpu", self.gpu, limits.GPU_MILLI_MAX),
        ):
            if amount > most:
                much = "that much memory" if "memory" in what else "that many CPUs or GPUs"
                raise FieldError(f"cannot use {much}: more than any machine has", what)
            if amount < 0:
                raise FieldError("cannot use negative resources: give numbers of 0 or more", what)
        if 0 < self.memory < limits.MEMORY_BYTES_MIN:
            raise FieldError(
                "cannot use so little memory: at least 4 MiB; or 0 for no limit", "memory"
            )
        if self.gpu_memory and not self.gpu:
            raise FieldError(
                "cannot give GPU memory without a GPU: ask for a share of one too", "gpu_memory"
            )
        if self.gpu > 1000 and self.gpu % 1000:
            raise FieldError(
                "cannot share more than one GPU: ask for below 1, or for whole ones", "gpu"
            )

    @property
    def is_valid(self) -> bool:
        """Whether no component is negative."""
        return min(self.cpu, self.gpu, self.memory, self.gpu_memory) >= 0

    def __str__(self) -> str:
        parts = [f"{show_share(self.cpu)} CPU", f"{show_share(self.gpu)} GPU"]
        parts.append(f"{show_size(self.memory)} memory")
        if self.gpu_memory:
            parts.append(f"{show_size(self.gpu_memory)} GPU memory")
        return ", ".join(parts)


def show_some(wants: Resources) -> str:
    """`1 CPU, 2 GiB`: of what there is none, nothing."""
    parts = [f"{show_share(wants.cpu)} CPU"] if wants.cpu else []
    parts += [f"{show_share(wants.gpu)} GPU"] if wants.gpu else []
    parts += [show_size(wants.memory)] if wants.memory else []
    parts += [f"{show_size(wants.gpu_memory)} of GPU memory"] if wants.gpu_memory else []
    return ", ".join(parts) or "nothing"


class Request(Resources, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Resources that have to be on certain nodes: what a task waits for as one thing.

    node: the only one; empty for any. labels: `key=value`, all of which a node must have, sorted.
    """

    node: str = ""
    labels: tuple[str, ...] = ()

    def admits(self, name: str, labels: Iterable[str]) -> bool:
        """Whether a node of that name, with those labels, is one of them."""
        return self.node in ("", name) and set(self.labels) <= set(labels)

    @property
    def plain(self) -> Resources:
        """The amounts alone, wherever they have to be."""
        return Resources(cpu=self.cpu, gpu=self.gpu, memory=self.memory, gpu_memory=self.gpu_memory)


def shortage(wants: Resources, nodes: Iterable[tuple[Resources, Resources]]) -> str:
    """What there is not enough of for a task that waits, in words; empty when nothing is short.

    nodes: capacity and use of each. Told of the node that could hold it and lacks the least.
    """
    told: list[tuple[int, float, str]] = []
    for capacity, used in nodes:
        if not wants.fits_in(capacity):
            continue
        free, short, worst = capacity - used, [], 0.0
        for name, (unit, show) in _UNITS.items():
            wanted, there = getattr(wants, name), getattr(free, name)
            whole = getattr(capacity, name)
            if wanted > there:
                held = f"{show(whole - there)} of {show(whole)} in use"
                short.append(f"{show(wanted)}{unit} ({held})")
                worst = max(worst, (wanted - there) / whole)
        told.append((len(short), worst, " and ".join(short)))
    return min(told)[2] if told else ""


_UNITS: Final[dict[str, tuple[str, Callable[[int], str]]]] = {
    "cpu": (" CPU", show_share),
    "gpu": (" GPU", show_share),
    "memory": (" of memory", show_size),
    "gpu_memory": (" of GPU memory", show_size),
}
