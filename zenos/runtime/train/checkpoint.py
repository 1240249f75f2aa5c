"""Checkpoints: tensors in safetensors, the rest in a manifest with hashes that is written last.

A checkpoint is a directory `step-000000200` that appears whole or not at all (written beside,
fsynced, renamed). The last good one stays until the next is in place, and one before it, so that a
damaged one has a predecessor. Nothing here is a pickle.

Who leaves with a checkpoint doesn't wait for the disk, which takes longer than all else. What it
leaves is whole for every process; the daemon has it synced a little later, and the one before stays
until that is done. A power cut in between costs what came after that one, as at any other moment;
that the newest is not whole then shows by its hashes.

    model.safetensors       parameters and buffers
    optimizer.safetensors   AdamW's moments and step counts
    best.safetensors        parameters of the best evaluation, if that was an earlier step
    manifest.json           format, state, files with sizes and SHA-256; then the SHA-256 of that
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from zenos.core import durable, failpoints
from zenos.core.errors import RefusedError, StorageError
from zenos.core.home import CHECKPOINT_PREFIX
from zenos.runtime.beside import beside
from zenos.runtime.train.stored import DTYPES, Stored
from zenos.threads import Future
from zenos.threads.current import report

log = logging.getLogger(__name__)

FORMAT: Final = 1
KEPT: Final = 2
MANIFEST: Final = "manifest.json"
_DAMAGED: Final = "damaged-"
Tensors = Mapping[str, torch.Tensor]


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """How a run whose machine has become slower goes on to its end.

    From step `at` on, where `share` of the schedule was behind it, the rest of the schedule takes
    as many steps as are left of `steps`.
    """

    at: int
    share: float
    steps: int


class Plan(msgspec.Struct, kw_only=True):
    """What was decided once and must stay the same over every resume.

    pack, tokenizer: directories in the cache. steps: None until a time budget has been turned into
    a number of steps, which happened after `planned_at` steps. fit: fewer of them, where the
    machine has become slower since. cut: where it ended before them, its time over.
    """

    pack: str
    tokenizer: str
    data_digest: str
    steps: int | None
    planned_at: int = 0
    cut: int | None = None
    fit: Fit | None = None
    format: int = FORMAT

    @property
    def last(self) -> int | None:
        """The number of steps after which it ends; None where that isn't known yet."""
        if self.cut is not None:
            return self.cut
        return self.fit.steps if self.fit is not None else self.steps


class State(msgspec.Struct, kw_only=True):
    """Everything besides tensors: a run goes on from it bit for bit.

    step: optimiser steps done; with the spec's seed it gives data order and random numbers.
    trained_s: seconds spent in steps. curve: (step, mean training loss since the last point,
    held-out loss or None). window: losses since the last point. evaluating: the evaluation after
    that step was cut short, and is done again.
    """

    step: int
    plan: Plan
    fingerprint: dict[str, str]
    best_step: int | None = None
    best_loss: float | None = None
    trained_s: float = 0.0
    curve: list[tuple[int, float, float | None]] = []
    window: list[float] = []
    evaluating: bool = False


class _File(msgspec.Struct, frozen=True):
    bytes: int
    sha256: str


class _Format(msgspec.Struct):
    format: int


class _Manifest(msgspec.Struct, kw_only=True):
    format: int
    state: State
    files: dict[str, _File]


class DamagedError(StorageError):
    """cannot use this checkpoint: it is damaged"""


class Checkpoint:
    """One checkpoint on disk whose files are what its manifest says."""

    def __init__(
        self, directory: Path, *, later: bool = False, parts: Collection[str] | None = None
    ) -> None:
        """Raises DamagedError for anything missing or changed, RefusedError for a newer format.

        parts: only those are read, by default all. later: files are still being read, and `confirm`
        says whether they are whole. Until then nothing may be made of what stands in the tensors.
        """
        self.directory = directory
        try:
            manifest = _unseal((directory / MANIFEST).read_bytes())
            if msgspec.json.decode(manifest, type=_Format).format > FORMAT:
                raise RefusedError(
                    f"cannot resume from {directory}: a newer zenos wrote it; upgrade this one"
                )
            self._manifest = msgspec.json.decode(manifest, type=_Manifest)
            self._stored = {
                name: Stored(directory / name, expected.bytes)
                for name, expected in self._manifest.files.items()
                if parts is None or name.removesuffix(".safetensors") in parts
            }
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise DamagedError(str(error)) from error
        self._hashes = {
            name: beside("checkpoint", f"reading {name}", stored.read)
            for name, stored in self._stored.items()
        }
        if not later:
            self.confirm()

    def confirm(self) -> None:
        """Wait until all is read. Raises DamagedError for files that have changed."""
        for name, digest in self._hashes.items():
            try:
                same = digest.result() == self._manifest.files[name].sha256
            except OSError as error:
                raise DamagedError(str(error)) from error
            if not same:
                raise DamagedError(f"{name} has changed since it was written")

    @property
    def state(self) -> State:
        return self._manifest.state

    def tensors(self, part: str) -> dict[str, torch.Tensor] | None:
        """The tensors of `model`, `optimizer` or `best`; None where there is no such part.

        They lie in this object's memory: whoever takes one over keeps all of its part.
        """
        stored = self._stored.get(f"{part}.safetensors")
        return stored.tensors() if stored is not None else None

    def let_go(self) -> None:
        """Keep nothing in memory but what was taken over."""
        self._stored.clear()


class Checkpoints:
    """All checkpoints of one task, in `root`, and the thread that writes them, on its own lane."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._writing: Future[None] | None = None
        self._buffers: dict[str, dict[str, torch.Tensor]] = {}
        self._failure: OSError | None = None
        self._left: Path | None = None  # the checkpoint from which this process goes on
        self.saved_step: int | None = None

    # -- reading

    def latest(self, *, later: bool = False) -> tuple[Checkpoint | None, list[str]]:
        """The newest undamaged checkpoint, and a note for each newer one that is damaged.

        DamagedError ones are put aside, so that their step can be written again. later: see
        Checkpoint; of one that turns out to be damaged this is asked again, without it.
        """
        notes: list[str] = []
        for path in sorted(self._directories(), reverse=True):
            try:
                found = Checkpoint(path, later=later)
            except DamagedError as error:
                notes.append(
                    f"cannot use the checkpoint {path.name}: {error}; taking the one before"
                )
                log.warning("%s", notes[-1])
                self._put_aside(path)
                continue
            self.saved_step = found.state.step
            self._left = path
            return found, notes
        return None, notes

    def read_plan(self) -> Plan | None:
        """The plan written before the first step; None where there is none or it is damaged."""
        try:
            return msgspec.json.decode(_unseal((self.root / "plan.json").read_bytes()), type=Plan)
        except (OSError, msgspec.DecodeError, DamagedError):
            return None

    # -- writing

    def write_plan(self, plan: Plan) -> None:
        """Remember what was decided, durably. Raises StorageError."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write_file(self.root / "plan.json", _seal(msgspec.json.encode(plan)))
        except OSError as error:
            raise StorageError(
                f"cannot write to {self.root}: {error.strerror or error}; free some space"
            ) from error

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written at the moment."""
        return self._writing is not None and not self._writing.done()

    def begin(
        self,
        state: State,
        model: Tensors,
        optimizer: Tensors,
        best: Tensors | None,
        *,
        copy: bool = True,
        sync: bool = True,
    ) -> None:
        """Copy everything and write the copy on a lane; waits for one that is being written.

        copy: not needed by who waits until it is written. `best` is not copied in any case: the
        caller never changes it in place. sync: not for who leaves with it; see `tidy`.
        """
        self._join()
        parts = {
            "model": self._copy("model", model) if copy else _on_cpu(model),
            "optimizer": self._copy("optimizer", optimizer) if copy else _on_cpu(optimizer),
        }
        if best is not None:
            parts["best"] = _on_cpu(best)
        views = {part: _views(tensors) for part, tensors in parts.items()}
        encoded = msgspec.convert(msgspec.to_builtins(state), State)  # a copy of its own

        def write() -> None:
            self._write(encoded, views, sync=sync)
            self.saved_step = encoded.step

        self._writing = beside("checkpoint", f"step {encoded.step}", write)

    def failure(self) -> OSError | None:
        """Why the last write failed, told once; None if it didn't, or is still under way."""
        if self.busy:
            return None
        self._join()
        failure, self._failure = self._failure, None
        return failure

    def wait(self) -> OSError | None:
        """Wait until nothing is being written; why the last write failed, or None."""
        self._join()
        return self.failure()

    def remove(self) -> None:
        """Delete everything: the run is over."""
        self._join()
        shutil.rmtree(self.root, ignore_errors=True)

    def _join(self) -> None:
        if self._writing is None:
            return
        error, self._writing = self._writing.exception(), None
        if isinstance(error, OSError):
            self._failure = error
        elif error is not None:
            raise error

    def _copy(self, part: str, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Into buffers that are kept from one checkpoint to the next."""
        buffers = self._buffers.setdefault(part, {})
        for name, tensor in tensors.items():
            source = tensor.detach()
            if name not in buffers:
                buffers[name] = torch.empty(source.shape, dtype=source.dtype, device="cpu")
            buffers[name].copy_(source)
        return buffers

    def tidy(self) -> None:
        """Once, on a lane: sync what an earlier process has left, and remove what is too old."""
        if self._left is None:
            return
        left, self._left = self._left, None

        def sync() -> None:
            try:
                durable.sync_tree(left)
            except FileNotFoundError:
                return  # the run has ended meanwhile, or has newer ones
            except OSError as error:
                log.warning("cannot sync %s: %s", left, error.strerror or error)
            else:
                self._prune(leftovers=False)  # the next one may be on its way

        beside("checkpoint", f"syncing {left.name}", sync)

    def _write(
        self, state: State, parts: dict[str, list[tuple[str, str, list[int], Any]]], *, sync: bool
    ) -> None:
        path = self.root / f"{CHECKPOINT_PREFIX}{state.step:09d}"
        if path.exists():
            return  # the same step again, by a run that repeats it: the same bytes
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with durable.new_directory(path, sync=sync) as fresh:
            files: dict[str, _File] = {}
            for part, views in parts.items():
                name = f"{part}.safetensors"
                files[name] = _write_tensors(fresh / name, views, sync=sync)
                report(len(files) / len(parts))
            manifest = _Manifest(format=FORMAT, state=state, files=files)
            encoded = msgspec.json.encode(manifest)
            durable.write_file(fresh / MANIFEST, _seal(encoded), sync=sync)
        if sync:
            self._prune()

    def _prune(self, *, leftovers: bool = True) -> None:
        """Keep the newest KEPT; remove what is damaged and what a killed writer left.

        leftovers: not while another one may be written.
        """
        old = sorted(self._directories())[:-KEPT]
        gone = (_DAMAGED, durable.TEMPORARY_PREFIX) if leftovers else (_DAMAGED,)
        for entry in self.root.iterdir():
            if entry.name.startswith(gone) or entry in old:
                shutil.rmtree(entry, ignore_errors=True)

    def _directories(self) -> list[Path]:
        try:
            return [p for p in self.root.iterdir() if p.name.startswith(CHECKPOINT_PREFIX)]
        except FileNotFoundError:
            return []

    def _put_aside(self, path: Path) -> None:
        aside = path.with_name(_DAMAGED + path.name)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            path.rename(aside)
        except OSError as error:
            raise StorageError(f"cannot put {path} aside: {error.strerror or error}") from error


def _on_cpu(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The same memory where it is the CPU's."""
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _views(tensors: Tensors) -> list[tuple[str, str, list[int], Any]]:
    """(name, safetensors dtype, shape, bytes) of each tensor, sorted by name.

    Made by the training thread: the writing one runs no torch operation.
    """
    return [
        (
            name,
            DTYPES[tensor.dtype],
            list(tensor.shape),
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data,
        )
        for name, tensor in sorted(tensors.items())
    ]


def _write_tensors(
    path: Path, views: list[tuple[str, str, list[int], Any]], *, sync: bool
) -> _File:
    """Write a safetensors file; it is hashed beside, which takes as long as to write it.

    The format: the header's length (8 bytes, little-endian), the header (JSON: dtype, shape and
    offsets of each tensor), then the tensors' bytes without gaps.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, dtype, shape, view in views:
        end = offset + view.nbytes
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    head = msgspec.json.encode(header)
    head += b" " * (-len(head) % 8)
    pieces = [len(head).to_bytes(8, "little"), head, *(view for *_, view in views)]
    hashed = beside("checkpoint", f"hashing {path.name}", partial(_digest, pieces))
    failpoints.passing("durable.write")
    with path.open("xb", buffering=0) as file:
        for piece in pieces:
            left = memoryview(piece)
            while left:
                left = left[file.write(left) :]
        if sync:
            os.fsync(file.fileno())
    return _File(8 + len(head) + offset, hashed.result())


def _digest(pieces: list[Any]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _seal(body: bytes) -> bytes:
    return body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _unseal(data: bytes) -> bytes:
    body, _, rest = data.partition(b"\n")
    if rest.strip() != hashlib.sha256(body).hexdigest().encode():
        raise DamagedError("its manifest has changed since it was written")
    return body
