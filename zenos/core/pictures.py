"""Files for pictures that matplotlib draws elsewhere: whether they can be written, and writing."""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from zenos.core.errors import InvalidError, StorageError

ENDINGS: Final = (".png", ".svg", ".pdf", ".jpg")
DOTS_PER_INCH: Final = 150


class Figure(Protocol):
    """What matplotlib's figures do, as far as it is needed here."""

    def savefig(self, fname: Path, *, dpi: float) -> None: ...


def check(path: Path) -> None:
    """Raises InvalidError for a picture that couldn't be written in the end."""
    check_kind(path)
    if not path.absolute().parent.is_dir():
        raise InvalidError(f"cannot write {path}: there is no such directory")


def check_kind(path: Path) -> None:
    """Raises InvalidError where such a picture can't be drawn, wherever it is to lie."""
    if path.suffix.lower() not in ENDINGS:
        raise InvalidError(f"cannot write {path}: its ending must be one of {', '.join(ENDINGS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidError(
            "cannot draw a picture: matplotlib is missing; type: pip install 'zenos[plot]'"
        )


def save(figure: Figure, path: Path) -> None:
    """Write it whole, or leave what is there as it is; the ending says as what.

    StorageError where that isn't possible.
    """
    path = Path(os.path.realpath(path))  # a link goes on leading to it
    beside = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        figure.savefig(beside, dpi=DOTS_PER_INCH)
        beside.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # it has its name, or was never made
            beside.unlink()
