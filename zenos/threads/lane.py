"""A lane's process: `python -P -m zenos.threads.lane SOCKET BOARD PARENT`.

It takes functions and items from its socket, runs them, and answers. SOCKET and BOARD are
descriptors that it inherits, PARENT is the process that it belongs to: it ends with it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from zenos.core.errors import InvalidError, WorkerError
from zenos.core.processes import PR_SET_PDEATHSIG, prctl
from zenos.threads import codec
from zenos.threads.codec import Header
from zenos.threads.current import Board, Ran, run

RESULT_SHOWN_CHARS: Final = 200


def call(work: Callable[..., Any], item: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """How a single call is an item: its arguments."""
    arguments, named = item
    return work(*arguments, **named)


def main() -> None:
    """Serve until the other end closes."""
    parent = int(sys.argv[3])
    if sys.platform == "linux":
        # Asked for after the start, so the parent may have gone before.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(0)
    # Both are the parent's to decide on. Handlers, unlike SIG_IGN, aren't handed down to programs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    board_fd = int(sys.argv[2])
    board = Board(board_fd)
    os.close(board_fd)
    with socket.socket(fileno=int(sys.argv[1])) as link:
        os.set_inheritable(link.fileno(), False)  # else a program started here would hold it open
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
    error = None if ran.error is None else _sendable(ran.error)
    try:
        said = (results, error, ran.text, ran.seconds, ran.stopped, ran.lasting)
        codec.send(link, header, codec.dump(said))
    except OSError:
        raise
    except Exception as reason:  # noqa: BLE001 - whatever pickling raises, or it is too large
        unsent = InvalidError(
            f"cannot send the result back ({type(reason).__name__}: "
            f"{str(reason)[:RESULT_SHOWN_CHARS]}): return something that can be pickled"
        )
        codec.send(link, header, codec.dump(([], unsent, "", ran.seconds, ran.stopped, True)))


def _sendable(error: BaseException) -> BaseException:
    """The error, if it comes through unharmed; else one that says what it was."""
    try:
        copy = codec.load(codec.dump(error))
        if type(copy) is type(error) and isinstance(error, Exception):
            return error
    except BaseException:  # noqa: BLE001, S110 - it is told below, in words
        pass
    said = traceback.format_exception_only(error)[-1].strip()
    return WorkerError(f"cannot finish the thread: its function raised {said}")


if __name__ == "__main__":
    main()
