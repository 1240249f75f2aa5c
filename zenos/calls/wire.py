"""What a program, a host of calls and its lanes say to each other.

Program and host have a stream socket, which the program sends to the host over the bus. A frame on
it is a length (4 bytes, big-endian) and one message, as MessagePack. The host and a lane have a
socket of packets: each packet is one message, and goes to one reader, whole. What is too large for
a packet goes beside it as a descriptor of memory. Functions, arguments and results are pickles;
the host passes them on and never looks into them.
"""

from __future__ import annotations

import array
import errno
import importlib.util
import mmap
import os
import socket
import struct
import threading
from typing import Any, Final

import msgspec

from zenos import __version__
from zenos.core import limits
from zenos.core.errors import InvalidError, LaneError, ZenosError
from zenos.threads import codec

LENGTH: Final = struct.Struct(">I")
FRAME_BYTES_MAX: Final = 2 * limits.CALL_BYTES_MAX + limits.MIB
FUNCTIONS_SAID_MAX: Final = 1024
FUNCTION_BYTES_SAID_MAX: Final = limits.CALL_BYTES_MAX
# What both ends must share for the one to run the other's functions.
BUILD: Final = f"zenos {__version__}, {codec.PICKLER}, bytecode {importlib.util.MAGIC_NUMBER.hex()}"
# Flags of a call.
DURABLE: Final = 1
IDEMPOTENT: Final = 2
MANY: Final = 4  # its argument is a list of items, and the function is called with each
# How a call ended. Payloads: the pickled result; of RAISED a pickled pair, the error and its
# traceback; of REFUSED an error's code and message, as MessagePack.
DONE: Final = 0
RAISED: Final = 1
REFUSED: Final = 2
CANCELLED: Final = 3
STALE: Final = 4  # of a lane alone: it has not run, since the lane's modules are old; it ends
LANE: Final = "lane"  # the code of a LaneError, which has none of its own


class FrameError(InvalidError):
    """cannot read this frame: it is malformed, and its connection is closed"""


class BesideError(OSError):
    """What came beside a packet could not be taken. body: the packet itself."""

    def __init__(self, number: int, body: bytes) -> None:
        super().__init__(number, os.strerror(number))
        self.body = body


class Function(msgspec.Struct, array_like=True):
    """A function: the digest of its pickle, its name for people, and the pickle."""

    key: bytes
    name: str
    body: bytes


class Call(msgspec.Struct, array_like=True):
    """A call. id: counts in its program. retries: when its lane dies. timeout_s: 0 for none."""

    id: int
    key: bytes
    arguments: bytes
    flags: int = 0
    retries: int = 0
    timeout_s: float = 0.0
    items: int = 1


class Result(msgspec.Struct, array_like=True):
    """How a call ended. id: of the call in its program, or on the host (see lanes)."""

    id: int
    outcome: int
    payload: bytes = b""
    seconds: float = 0.0


class Said:
    """The functions that a connection has said, and that both its ends so know: the newest.

    Both ends keep the same, for they take the same frames in the same order, and each forgets what
    is too much once a frame is done with.
    """

    def __init__(self) -> None:
        self._functions: dict[bytes, Function] = {}
        self._bytes = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._functions

    def __getitem__(self, key: bytes) -> Function:
        return self._functions[key]

    def __len__(self) -> int:
        return len(self._functions)

    def say(self, function: Function) -> None:
        """It is in the present frame. Once it is said it isn't again, unless it was forgotten."""
        self._functions[function.key] = function
        self._bytes += len(function.body)

    def end_frame(self) -> None:
        """Forget the oldest of too many."""
        while len(self._functions) > FUNCTIONS_SAID_MAX or (
            self._bytes > FUNCTION_BYTES_SAID_MAX and self._functions
        ):
            oldest = self._functions.pop(next(iter(self._functions)))
            self._bytes -= len(oldest.body)


class Hello(msgspec.Struct, array_like=True, tag="hello"):
    """Of a program. build: see BUILD; caller: its own random name; paths: its sys.path."""

    build: str
    caller: bytes
    paths: list[str]


class Calls(msgspec.Struct, array_like=True, tag="calls"):
    """Of a program. functions: those of the calls that this connection has not said; see Said.

    heard: as of Heard.
    """

    functions: list[Function]
    calls: list[Call]
    heard: int = 0


class Heard(msgspec.Struct, array_like=True, tag="heard"):
    """Of a program: it has taken so many results of this connection. Its host keeps the others, for
    what is in a socket that breaks is lost."""

    count: int


class Cancel(msgspec.Struct, array_like=True, tag="cancel"):
    """Of a program: nobody wants these any more. Each is answered with a result of some kind."""

    ids: list[int]


class Asking(msgspec.Struct, array_like=True, tag="asking"):
    """Of a program: say at once, from now on, what is on the disk; else it comes with results."""


class Resume(msgspec.Struct, array_like=True, tag="resume"):
    """Of a program, to the next host: these were accepted, how do they end?"""

    ids: list[int]


class Ready(msgspec.Struct, array_like=True, tag="ready"):
    """Of a host: come in. Of a lane: it is ready to run functions."""


class Accepted(msgspec.Struct, array_like=True, tag="accepted"):
    """Of a host: these are on the disk."""

    ids: list[int]


class Results(msgspec.Struct, array_like=True, tag="results"):
    """Of a host."""

    results: list[Result]


class Bye(msgspec.Struct, array_like=True, tag="bye"):
    """Of a host that ends: it has read nothing that it has not answered."""


class Refused(msgspec.Struct, array_like=True, tag="refused"):
    """Of a host: it does not let this program in."""

    code: str
    message: str


class Paths(msgspec.Struct, array_like=True, tag="paths"):
    """To a lane: its sys.path, and where it writes down what it begins."""

    paths: list[str]
    journal: str


class Learn(msgspec.Struct, array_like=True, tag="learn"):
    """To a lane: keep this function. body: empty when it comes beside the packet."""

    key: bytes
    body: bytes


class Forget(msgspec.Struct, array_like=True, tag="forget"):
    """To a lane: this function isn't needed any more."""

    key: bytes


class Run(msgspec.Struct, array_like=True, tag="run"):
    """To a lane: run this. segment: of the journal; 0: nothing is to be written down."""

    serial: int
    key: bytes
    arguments: bytes
    flags: int
    segment: int


FromProgram = Hello | Calls | Heard | Cancel | Asking | Resume
FromHost = Ready | Accepted | Results | Bye | Refused
ToLane = Paths | Learn | Forget | Run
from_program: Final = msgspec.msgpack.Decoder(FromProgram)
from_host: Final = msgspec.msgpack.Decoder(FromHost)
to_lane: Final = msgspec.msgpack.Decoder(ToLane)
result_of: Final = msgspec.msgpack.Decoder(Result)
encoder: Final = msgspec.msgpack.Encoder()
BAD: Final = (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError)


def refused(error: ZenosError, id_: int = 0) -> Result:
    """The end of a call with an error of ours."""
    code = LANE if isinstance(error, LaneError) else error.code
    return Result(id_, REFUSED, encoder.encode((code, error.message)))


def frame(message: Any) -> bytes:
    """A message as it goes over a stream."""
    body = encoder.encode(message)
    return LENGTH.pack(len(body)) + body


class Frames:
    """Takes a stream apart."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Any]) -> None:
        self._decoder = decoder
        self._rest = bytearray()

    def take(self, data: bytes | memoryview) -> list[Any]:
        """The messages that are whole with these bytes. FrameError: close the connection."""
        found: list[Any] = []
        if not self._rest:  # mostly: then only what is left over is copied
            with memoryview(data) as view:
                self._rest += view[self._decode(view, found) :]
            return found
        self._rest += data
        with memoryview(self._rest) as view:
            at = self._decode(view, found)
        del self._rest[:at]
        return found

    def _decode(self, view: memoryview, found: list[Any]) -> int:
        """Add the messages that are whole; where the rest begins."""
        at = 0
        while len(view) - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(view, at)
            if length > FRAME_BYTES_MAX:
                raise FrameError(f"cannot read a frame of {length} bytes: too long")
            if len(view) - at - LENGTH.size < length:
                break
            at += LENGTH.size
            try:
                with view[at : at + length] as part:
                    found.append(self._decoder.decode(part))
            except BAD as error:
                raise FrameError(f"cannot read a frame: {error}") from None
            at += length
        return at


def widen(link: socket.socket) -> None:
    """Let more be on its way: else a few chunks of a map fill it, and who sends them waits."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.CALL_SOCKET_BYTES)


class _Memory(threading.local):
    """Where a thread receives packets. To have new memory for each costs more than most of them."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(PACKET_BYTES))


def send_packet(link: socket.socket, message: Any, beside: bytes = b"") -> None:
    """Send one packet, with many bytes beside it if there are any. Raises OSError."""
    body = encoder.encode(message)
    if not beside:
        link.send(body)
        return
    fd = os.memfd_create("zenos-call", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, len(beside))
        view = memoryview(beside)
        while view:
            view = view[os.write(fd, view) :]
        socket.send_fds(link, [body], [fd])
    finally:
        os.close(fd)


def receive_packet(link: socket.socket, flags: int = 0) -> tuple[bytes, bytes] | None:
    """The next packet, and what came beside it; None at the end. Raises OSError."""
    body, fds, told = _received(link, flags)
    try:
        if told & socket.MSG_CTRUNC:  # the system had no descriptor to give
            raise BesideError(errno.EMFILE, body)
        if not fds:
            return (body, b"") if body else None
        try:
            size = os.fstat(fds[0]).st_size
            with mmap.mmap(fds[0], size, prot=mmap.PROT_READ) as memory:
                return body, bytes(memory)
        except OSError as error:
            raise BesideError(error.errno or errno.ENOMEM, body) from error
    finally:
        for fd in fds:
            os.close(fd)


def receive_body(link: socket.socket, flags: int = 0) -> bytes | None:
    """The next packet without what came beside it; None at the end. Raises OSError."""
    body, fds, _ = _received(link, flags)
    for fd in fds:
        os.close(fd)
    return body or None


def _received(link: socket.socket, flags: int) -> tuple[bytes, array.array[int], int]:
    # Not by socket.recv_fds: in Python 3.11 that drops the flags.
    view = _memory.view
    size, ancillary, told, _ = link.recvmsg_into([view], _ONE_DESCRIPTOR, flags | _CLOSE_ON_EXEC)
    return bytes(view[:size]), array.array("i", ancillary[0][2] if ancillary else b""), told


_ONE_DESCRIPTOR: Final = socket.CMSG_SPACE(4)
_CLOSE_ON_EXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
PACKET_BYTES: Final = limits.CALL_PACKET_BYTES_MAX + 4 * limits.KIB
_memory: Final = _Memory()
