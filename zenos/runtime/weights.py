"""Weights of one version, from a training to the replicas of its model, through shared memory.

What lies in the memory is a whole safetensors file, as it is registered. A training *offers* its
newest one on a socket: who connects names a version, and is given the parcel if that is the one,
and nothing else if it isn't. So a reader sees one version whole or none, and the one who offers
waits for nobody. The socket has no file (an abstract address), and goes with its process; each
side looks whose process the other is.

The format: the header's length (8 bytes, little-endian), the header (JSON: dtype, shape and offsets
of each tensor), then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import torch

from zenos.bus import parcel, passing
from zenos.bus.parcel import Parcel
from zenos.bus.view import View
from zenos.core import limits
from zenos.core.errors import HandleError, ZenosError
from zenos.core.home import Home

log = logging.getLogger(__name__)

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid
_LENGTH_BYTES: Final = 8


class Image:
    """How the safetensors file of some tensors looks. bytes: its size."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._places: dict[str, tuple[int, int]] = {}
        offset = 0
        # The largest items first, so that each tensor lies where its type must.
        for name, tensor in sorted(tensors.items(), key=lambda t: (-t[1].dtype.itemsize, t[0])):
            end = offset + tensor.numel() * tensor.dtype.itemsize
            header[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            self._places[name] = (offset, end)
            offset = end
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % _LENGTH_BYTES)
        self._head = len(head).to_bytes(_LENGTH_BYTES, "little") + head
        self.bytes = len(self._head) + offset

    def write(self, tensors: Mapping[str, torch.Tensor], memory: memoryview) -> None:
        """Write the file of tensors of the same names, types and shapes, from any device."""
        start = len(self._head)
        memory[:start] = self._head
        for name, (begin, end) in self._places.items():
            if end > begin:
                source = tensors[name].detach()
                place = memory[start + begin : start + end]
                torch.frombuffer(place, dtype=source.dtype).view(source.shape).copy_(source)


def read(memory: memoryview, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file in memory, copied; numbers with a fraction in `dtype`.

    HandleError for what is no such file.
    """
    found: dict[str, torch.Tensor] = {}
    try:
        start = _LENGTH_BYTES + int.from_bytes(memory[:_LENGTH_BYTES], "little")
        header = json.loads(bytes(memory[_LENGTH_BYTES:start]))
        header.pop("__metadata__", None)
        for name, said in header.items():
            begin, end = said["data_offsets"]
            type_, shape = DTYPES[said["dtype"]], said["shape"]
            if begin == end:
                tensor = torch.empty(shape, dtype=type_)
            else:
                part = memory[start + begin : start + end]
                tensor = torch.frombuffer(part, dtype=type_).view(shape)
            wanted = dtype if type_.is_floating_point else type_
            found[name] = tensor.to(wanted, copy=True)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise HandleError(f"cannot read these weights: {error}") from error
    return found


def address(home: Home, task: str) -> str:
    """Where a training of that home offers its weights."""
    return f"\0{home.sockets.name}/weights-{task}"


class Offer:
    """The newest version, for those who ask. The parcel is its own from `put` on. Thread-safe."""

    def __init__(self, at: str) -> None:
        self._lock = threading.Lock()
        self._version = ""
        self._parcel: Parcel | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._closed = False
        try:
            self._socket.bind(at)
            self._socket.listen(limits.WEIGHTS_WAITING_MAX)
        except OSError as error:
            # Replicas read the registry's files instead.
            log.warning("weights are not offered in shared memory: %s", error)
            self._closed = True
            self._socket.close()
            return
        self._thread = threading.Thread(target=self._serve, name="offer", daemon=True)
        self._thread.start()

    def put(self, version: str, given: Parcel) -> None:
        """Offer this one from now on, and no other."""
        with self._lock:
            old, self._parcel, self._version = self._parcel, given, version
        if old is not None:
            old.close()

    def withdraw(self) -> None:
        """Offer nothing. Who has been given a parcel keeps it."""
        with self._lock:
            old, self._parcel = self._parcel, None
        if old is not None:
            old.close()

    def close(self) -> None:
        """Withdraw, and end the thread."""
        self.withdraw()
        if self._closed:
            return
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(2 * limits.WEIGHTS_TIMEOUT_S)
        self._socket.close()

    def _serve(self) -> None:
        while not self._closed:
            try:
                link, _ = self._socket.accept()
            except OSError:
                if not self._closed:
                    log.warning("weights are no longer offered in shared memory")
                return
            with link:
                try:
                    self._answer(link)
                except (OSError, ZenosError) as error:
                    log.info("weights were not given: %s", error)

    def _answer(self, link: socket.socket) -> None:
        if not _is_ours(link):
            return
        asked = passing.receive(link, timeout_s=limits.WEIGHTS_TIMEOUT_S)
        if asked is None:
            return
        passing.close_all(asked[1])
        with self._lock:
            if self._parcel is not None and asked[0] == self._version.encode():
                parcel.send(link, self._parcel, timeout_s=limits.WEIGHTS_TIMEOUT_S)


def ask(at: str, version: str, dtype: torch.dtype) -> dict[str, torch.Tensor] | None:
    """The tensors of that version, copied into this process; None where it isn't offered."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(limits.WEIGHTS_WAIT_S)
            link.connect(at)
            link.settimeout(None)
            if not _is_ours(link):
                return None
            passing.send(link, version.encode(), [], timeout_s=limits.WEIGHTS_TIMEOUT_S)
            given = parcel.receive(link, timeout_s=limits.WEIGHTS_WAIT_S)
        if given is None:
            return None
        with given, View(given) as view:
            return read(view.private_memory(), dtype)
    except (OSError, ZenosError) as error:
        log.info("%s is not offered in shared memory: %s", version, error)
        return None


def _is_ours(link: socket.socket) -> bool:
    """Whether the other end is a process of the same user."""
    said = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(said)[1] == os.getuid())
