"""Requests for a model in a simulation, read from CSV, and the replicas that answer them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.fields import about, check_bounds
from zenos.core.node import Node
from zenos.core.resources import show_units
from zenos.core.specs import DeploymentSpec
from zenos.simulate import tables

# Ours, and those of the Azure LLM inference traces (Azure/AzurePublicDataset).
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "arrival": ("arrival", "arrival_s", "arrival_time", "timestamp"),
    "prompt": ("prompt", "prompt_tokens", "input_tokens", "contexttokens"),
    "output": ("output", "output_tokens", "generatedtokens"),
}
TOKENS_MAX: Final = 10_000_000
MODEL: Final = "served"


class Asked(NamedTuple):
    """A request: when it comes, in seconds after the first; tokens of its prompt and answer."""

    at_s: float
    prompt: int
    output: int


class Replicas(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What answers the requests: one deployment, and how fast each of its replicas is."""

    gpus: Annotated[float, about("GPUs that a replica holds.", 0.001, 1024)] = 1.0
    slots: Annotated[int, about("Requests that it answers at a time.", 1, 4096)] = 32
    load_s: Annotated[float, about("Seconds until it is ready.", 0, 86400)] = 30.0
    prompt_rate: Annotated[float, about("Prompt tokens a second, of a request.", 0.001, 1e9)] = 8e3
    output_rate: Annotated[float, about("Tokens of its answer a second.", 0.001, 1e9)] = 40.0
    min_replicas: Annotated[int, about("As in a deployment.", 0, 64)] = 0
    max_replicas: Annotated[int, about("As in a deployment.", 1, 64)] = 4
    keep_alive_s: Annotated[float, about("As in a deployment.", 0, limits.EXPECTED_S_MAX)] = (
        limits.KEEP_ALIVE_S
    )
    priority: Annotated[
        int, about("As in a deployment.", limits.PRIORITY_MIN, limits.PRIORITY_MAX)
    ] = limits.PRIORITY_HIGH
    timeout_s: Annotated[
        float, about("Seconds within which a request is answered.", 0.001, limits.EXPECTED_S_MAX)
    ] = limits.REQUEST_DEADLINE_S

    def check(self, nodes: Sequence[Node]) -> None:
        """Raises InvalidError for what isn't possible, or not on these nodes."""
        check_bounds(self, "the replica's ")
        most = max(node.gpus for node in nodes)
        if self.gpus > most:
            wanted = show_units(round(self.gpus * 1000), "GPU")
            raise InvalidError(
                f"cannot serve from a replica of {wanted}: the largest node has {most}"
            )
        if self.gpus > 1 and self.gpus % 1:
            raise InvalidError(
                f"cannot serve from a replica of {self.gpus:g} GPUs: give a share of one, or whole "
                "ones"
            )
        self.deployment().check()

    def deployment(self) -> DeploymentSpec:
        """What is deployed. It wants GPUs alone, as the jobs do: nodes have nothing else here."""
        return DeploymentSpec(
            model=MODEL,
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            keep_alive_s=self.keep_alive_s,
            priority=self.priority,
            cpu=0.0,
            gpu=self.gpus,
            memory="0",
            slots=self.slots,
        )


class Load(NamedTuple):
    """Requests by time, which begin anew every so often, each time whole, until then."""

    asked: list[Asked]
    every_s: float
    until_s: float

    def arrivals(self) -> Iterator[Asked]:
        """All of them, by time; the first at 0."""
        at_s, rounds = 0.0, 0
        while rounds == 0 or at_s < self.until_s:
            for asked in self.asked:
                yield asked._replace(at_s=at_s + asked.at_s)
            rounds += 1
            at_s = rounds * self.every_s


def read(path: Path, *, skip_bad: bool = False) -> tuple[list[Asked], list[str]]:
    """Requests by time from the first one, and why rows were left out. Raises as `tables.read`."""
    needed = tuple(COLUMNS)
    asked, skipped = tables.read(path, "the requests", COLUMNS, needed, _asked, skip_bad=skip_bad)
    if not asked:
        raise InvalidError(f"cannot simulate {path}: it has no requests")
    asked.sort()
    first = asked[0].at_s
    return [one._replace(at_s=one.at_s - first) for one in asked], skipped


def load(asked: list[Asked], every_s: float | None, until_s: float) -> Load:
    """The requests over and over until then: one round after the other, or every so often.

    One after the other at the rate of the file: with the mean time between two of its requests
    between its last and its first. Raises InvalidError for rounds that would overlap.
    """
    took_s = asked[-1].at_s
    if every_s is None:
        return Load(asked, took_s + took_s / max(1, len(asked) - 1) or math.inf, until_s)
    if not took_s < every_s < math.inf:
        raise InvalidError(
            f"cannot begin the requests anew every {every_s:g} s: they come for {took_s:g} s"
        )
    return Load(asked, every_s, until_s)


def _asked(row: tables.Row) -> Asked:
    return Asked(
        _time(row),
        int(row.number("prompt", 0, TOKENS_MAX)),
        int(row.number("output", 1, TOKENS_MAX)),
    )


def _time(row: tables.Row) -> float:
    """Seconds, or a date and time of day: in UTC where it says nothing else."""
    text = row.text("arrival")
    if ":" not in text:
        return row.number("arrival", 0.0, 1e11)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"arrival {text!r} is neither seconds nor a date and time") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
