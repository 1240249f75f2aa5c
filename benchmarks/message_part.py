"""The other end of a measurement of messages, as a process of its own.

`echo HOME` serves the topic `echo`; `sink HOME COUNT ROUNDS` receives so many messages from `sink`,
so often, and says `ready` before and `done` after each round; `socket FD` echoes on a raw socket.
"""

from __future__ import annotations

import socket
import sys

from zenos import bus

PREFETCH = 2000


def echo(home: str) -> None:
    """Answer until told to end."""
    with bus.connect(home=home) as ours:
        ours.topic("echo").serve(lambda body: body)


def sink(home: str, count: int, rounds: int) -> None:
    """Take messages as fast as they come."""
    with bus.connect(home=home) as ours:
        topic = ours.topic("sink", prefetch=PREFETCH)
        for _ in range(rounds):
            print("ready", flush=True)
            for _ in range(count):
                topic.receive()
            print("done", flush=True)


def raw(fd: int) -> None:
    """Answer on a socket, until its other end is closed."""
    with socket.socket(fileno=fd) as connection:
        while data := connection.recv(65536):
            connection.sendall(data)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["echo", where]:
            echo(where)
        case ["sink", where, messages, times]:
            sink(where, int(messages), int(times))
        case ["socket", number]:
            raw(int(number))
