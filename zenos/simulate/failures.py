"""Nodes that fail in a simulation: at stated times, or at random from a seed.

At random the times between failures, and until a node is back, are exponential: no node is older
than another, as in most of the literature on checkpoint intervals (J. Young, "A first order
approximation to the optimum checkpoint interval", 1974).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from zenos.core.errors import InvalidError
from zenos.core.node import Node
from zenos.core.wording import nearest

_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME: Final = re.compile(r"^(\d{1,9}(?:\.\d{1,9})?)([smhd]?)$")
TIME_S_MIN: Final = 1.0


class Failure(NamedTuple):
    """A node is away from then on for so long, in seconds."""

    node: str
    at_s: float
    for_s: float


class Failures:
    """Which nodes fail, and when. `following` draws, of each node in its own order."""

    def __init__(
        self,
        stated: Sequence[Failure] = (),
        mtbf_s: float | None = None,
        mttr_s: float = 3600.0,
        seed: int = 0,
    ) -> None:
        self.stated = sorted(stated, key=lambda failure: (failure.at_s, failure.node))
        self._mtbf_s = mtbf_s
        self._mttr_s = mttr_s
        self._seed = seed
        self._sources: dict[str, random.Random] = {}

    def __bool__(self) -> bool:
        return bool(self.stated) or self._mtbf_s is not None

    def following(self, node: str, after_s: float) -> Failure | None:
        """The next failure that is drawn for a node that is there since then; None without any."""
        if self._mtbf_s is None:
            return None
        source = self._sources.get(node)
        if source is None:
            # A source for each node: what happens to one changes nothing for another.
            source = self._sources[node] = random.Random(f"{self._seed}/{node}")  # noqa: S311
        at_s = after_s + source.expovariate(1 / self._mtbf_s)
        return Failure(node, at_s, max(TIME_S_MIN, source.expovariate(1 / self._mttr_s)))


def parse(text: str) -> Failure:
    """`n3:2d:4h`: that node, two days after the first job, for four hours. Raises InvalidError."""
    parts = text.split(":")
    times = [_TIME.match(part.strip()) for part in parts[1:]]
    if len(parts) != 3 or not parts[0].strip() or None in times:
        raise InvalidError(
            f"cannot read the failure {text[:60]!r}: write NODE:AT:FOR, for example n3:2d:4h"
        )
    at_s, for_s = (float(match[1]) * _SECONDS[match[2]] for match in times if match is not None)
    if for_s < TIME_S_MIN:
        raise InvalidError(f"cannot let {parts[0].strip()} fail for {for_s:g} s: at least 1")
    return Failure(parts[0].strip(), at_s, for_s)


def made(
    stated: Sequence[str],
    mtbf_s: float | None,
    mttr_s: float,
    seed: int,
    nodes: Sequence[Node],
) -> Failures:
    """What a request says, checked against its nodes. Raises InvalidError.

    One node can't fail while it is away.
    """
    names = [node.name for node in nodes]
    found = [parse(text) for text in stated]
    back: dict[str, float] = {}
    for failure in sorted(found, key=lambda one: one.at_s):
        if failure.node not in names:
            hint = nearest(failure.node, names) or f": they are {names[0]} to {names[-1]}"
            raise InvalidError(f"cannot let the node {failure.node[:60]!a} fail{hint}")
        if failure.at_s < back.get(failure.node, -math.inf):
            raise InvalidError(f"cannot let {failure.node} fail twice at a time")
        back[failure.node] = failure.at_s + failure.for_s
    for what, value in (("mtbf", mtbf_s), ("mttr", mttr_s)):
        if value is not None and not TIME_S_MIN <= value < math.inf:
            raise InvalidError(f"cannot use an {what} of {value:g} s: at least 1")
    if found and mtbf_s is not None:
        raise InvalidError("cannot let nodes fail at random and as stated: give one of the two")
    return Failures(found, mtbf_s, mttr_s, seed)
