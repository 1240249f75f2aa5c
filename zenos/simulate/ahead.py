"""`python -m zenos.simulate.ahead`: looks ahead from a picture of the kernel's state.

A process of its own, so that the daemon goes on meanwhile. On stdin a Question in MessagePack, on
stdout the answer: a Why, or a Plan.
"""

from __future__ import annotations

import sys
import time
from typing import Final

import msgspec

from zenos.core import limits
from zenos.core.outlook import Picture, Plan, Why
from zenos.kernel.explanation import explain
from zenos.kernel.forecast import Forecast

# Seconds after which no more is tried, and no further looked.
TRIED_S: Final = 2.0
SEEN_S: Final = 5.0


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """task: why that one is where it is; None asks for the plan, `ahead_s` seconds far."""

    picture: Picture
    task: str | None = None
    ahead_s: float = limits.FORECAST_S_MAX


def answer(question: Question) -> Why | Plan:
    """The answer, with what was found within the time that it may take."""
    began = time.monotonic()

    def tried() -> bool:
        return time.monotonic() - began > TRIED_S

    def seen() -> bool:
        return time.monotonic() - began > SEEN_S

    if question.task is not None:
        return explain(question.picture, question.task, tried, seen)
    forecast = Forecast(question.picture)
    complete = forecast.run(min(question.ahead_s, limits.FORECAST_S_MAX), seen)
    return forecast.plan(complete=complete)


def main() -> None:
    """Read, answer, and end."""
    question = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Question)
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer(question)))


if __name__ == "__main__":
    main()
