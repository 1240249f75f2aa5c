"""A lane's process: `python -P -m zenos.threads.lane SOCKET BOARD PARENT`.

It takes functions and items from its socket, runs them, and answers. See inherited.py.
"""

from __future__ import annotations

import functools
import json
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from zenos.threads import codec, inherited
from zenos.threads.codec import Header
from zenos.threads.current import Board, Ran, run


def call(work: Callable[..., Any], item: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """How a single call is an item: its arguments."""
    arguments, named = item
    return work(*arguments, **named)


def main() -> None:
    """Serve until the other end closes."""
    link, board, _ = inherited.take(sys.argv[1:])
    with link:
        serve(link, board)


def serve(link: socket.socket, board: Board) -> None:
    """Answer each `run` with an `ended`."""
    functions: dict[int, Callable[..., Any] | Ran] = {}
    while (frame := codec.receive(link)) is not None:
        header, parts = frame
        match header.kind:
            case "hello":
                sys.path[:] = json.loads(header.text)
                codec.send(link, Header(kind="ready"))
            case "function":
                functions[header.key] = _function(parts)
            case "forget":
                functions.pop(header.key, None)
            case "run":
                board.begin(header.serial)
                ran = _run(functions[header.key], parts, board, single=header.text == "call")
                _answer(link, header.serial, ran)
        del frame, parts  # an item lives no longer than it is needed


def _function(parts: list[codec.Buffer]) -> Callable[..., Any] | Ran:
    """The function, or what to answer in its place."""
    try:
        function: Callable[..., Any] = codec.load(parts)
    except BaseException as error:  # noqa: BLE001 - importing runs what it imports
        return Ran([], error=error, text=traceback.format_exc(), lasting=True)
    return function


def _run(
    function: Callable[..., Any] | Ran, parts: list[codec.Buffer], board: Board, *, single: bool
) -> Ran:
    if isinstance(function, Ran):
        return function
    try:
        items = codec.load(parts)
    except BaseException as error:  # noqa: BLE001
        return Ran([], error=error, text=traceback.format_exc(), lasting=True)
    return run(functools.partial(call, function) if single else function, items, board)


def _answer(link: socket.socket, serial: int, ran: Ran) -> None:
    header = Header(kind="ended", serial=serial)
    results = codec.aside(ran.results)
    error = None if ran.error is None else codec.sendable(ran.error, "thread")
    try:
        said = (results, error, ran.text, ran.seconds, ran.stopped, ran.lasting)
        codec.send(link, header, codec.dump(said))
    except OSError:
        raise
    except Exception as reason:  # noqa: BLE001 - whatever pickling raises, or it is too large
        said = ([], codec.unsendable(reason), "", ran.seconds, ran.stopped, True)
        codec.send(link, header, codec.dump(said))


if __name__ == "__main__":
    main()
