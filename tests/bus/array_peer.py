"""A program that does something with arrays: `python -m tests.bus.array_peer SOCKET ROLE`.

It says a line when it is ready, and goes on until it is killed, or its standard input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from zenos.bus.envelope import Hello
from zenos.bus.sync import Bus

LARGE = 300_000  # of float64: more than goes in a message


def say(*values: object) -> None:
    print(*values, flush=True)


def main() -> None:
    """Be `double`: serve calls. `hold`: receive arrays and keep them. `send`: send them, and
    keep a buffer. `deaf`: subscribe and read nothing."""
    path, role = Path(sys.argv[1]), sys.argv[2]
    with Bus(path, Hello(task="", generation=0, token="right", program=True), timeout_s=30) as bus:
        topic = bus.topic("arrays")
        if role == "double":
            say("ready")
            topic.serve(lambda array: array * 2)
        elif role == "hold":
            say("ready")
            held: list[Any] = []
            while True:
                with topic.receive() as message:
                    held.append(message.body)
                say(float(held[-1].sum()))
        elif role == "send":
            buffer = topic.buffer((LARGE,), "float64")
            buffer.array()[:] = 3
            topic.send(buffer)
            topic.send(np.arange(LARGE, dtype=np.float64))
            bus.flush()
            say("ready")
            sys.stdin.read()
        elif role == "deaf":
            with topic.subscribe():
                say("ready")
                sys.stdin.read()


if __name__ == "__main__":
    main()
