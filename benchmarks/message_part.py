"""The other end of a measurement of messages, as a process of its own.

`echo HOME TOPIC` answers calls; `sink HOME COUNT ROUNDS` receives so many messages from `sink`,
so often, and says `ready` before and `done` after each round; `pour HOME BYTES_PER_S` sends much to
`flow`, and `drain HOME` takes it; `socket FD` echoes on a raw socket.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

from zenos import bus
from zenos.core import limits

PREFETCH = 2000
FLOW_BYTES = 16 * limits.MIB


def echo(home: str, topic: str) -> None:
    """Answer until told to end."""
    with bus.connect(home=home) as ours:
        ours.topic(topic).serve(lambda body: body)


def sink(home: str, count: int, rounds: int) -> None:
    """Take messages as fast as they come."""
    with bus.connect(home=home) as ours:
        topic = ours.topic("sink", prefetch=PREFETCH)
        for _ in range(rounds):
            print("ready", flush=True)
            for _ in range(count):
                topic.receive()
            print("done", flush=True)


def pour(home: str, bytes_s: float) -> None:
    """Send arrays, as many bytes in a second, or as many as go."""
    with bus.connect(home=home) as ours:
        topic, body = ours.topic("flow"), bytes(FLOW_BYTES)
        due = time.monotonic()
        while True:
            topic.send(body)
            due = max(due + FLOW_BYTES / bytes_s, time.monotonic() - 1.0)
            time.sleep(max(0.0, due - time.monotonic()))


def drain(home: str) -> None:
    """Take them, and say when asked how many bytes that were."""
    with bus.connect(home=home) as ours, bus.connect(home=home) as other:
        count, topic = 0, ours.topic("flow", prefetch=4)
        serving = other.topic("flow/count").serve
        threading.Thread(target=serving, args=(lambda _: count,), daemon=True).start()
        while True:
            with topic.receive() as message:
                count += len(message.raw)


def raw(fd: int) -> None:
    """Answer on a socket, until its other end is closed."""
    with socket.socket(fileno=fd) as connection:
        while data := connection.recv(65536):
            connection.sendall(data)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["echo", where, topic]:
            echo(where, topic)
        case ["sink", where, messages, times]:
            sink(where, int(messages), int(times))
        case ["pour", where, speed]:
            pour(where, float(speed))
        case ["drain", where]:
            drain(where)
        case ["socket", number]:
            raw(int(number))
