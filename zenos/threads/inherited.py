"""What the process of a lane is given: `... SOCKET BOARD PARENT`.

SOCKET and BOARD are descriptors that it inherits, PARENT is the process that it belongs to and ends
with.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence

from zenos.core.processes import PR_SET_PDEATHSIG, prctl
from zenos.threads.current import Board


def take(given: Sequence[str]) -> tuple[socket.socket, Board, int]:
    """The socket, the board and the parent's number; ends the process when that is gone."""
    parent = int(given[2])
    if sys.platform == "linux":
        # Asked for after the start, so the parent may have gone before.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(0)
    # Both are the parent's to decide on. Handlers, unlike SIG_IGN, aren't handed down to programs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    board_fd = int(given[1])
    board = Board(board_fd)
    os.close(board_fd)
    link = socket.socket(fileno=int(given[0]))
    os.set_inheritable(link.fileno(), False)  # else a program started here would hold it open
    return link, board, parent
