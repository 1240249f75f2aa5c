"""Where things lie: one directory, `ZENOS_HOME`."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from zenos.core import durable
from zenos.core.errors import InvalidError, StorageError

CHECKPOINT_PREFIX: Final = "step-"  # a checkpoint's directory is called by it and the step


_BASE_BYTES_MAX: Final = 60
_SHARED_PLACES: Final = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - as in `_sockets`


def given(variable: str) -> str | None:
    """A variable of the environment that names what is meant; None where it isn't set.

    InvalidError for one that is set and empty: a script whose command failed would else act on
    the home that is here, and as its operator.
    """
    value = os.environ.get(variable)
    if value is not None and not value.strip():
        raise InvalidError(
            f"cannot use {variable}: it is set and empty; set it to what is meant, or unset it"
        )
    return value


class Home(msgspec.Struct, frozen=True):
    """Paths inside one home. Two homes are two independent systems."""

    root: Path

    @classmethod
    def default(cls, *, elsewhere: bool = False) -> Home:
        """`ZENOS_HOME`, which may yet have to be made, or `.zenos` in the user's directory.

        InvalidError where there is no such directory: it is none of ours to make. elsewhere: the
        daemon has another address, and so the user needs none.
        """
        said = given("ZENOS_HOME")
        user = os.environ.get("HOME")
        user = os.path.expanduser("~") if user is None else user  # noqa: PTH111 - says ~ if unknown
        if said or os.path.isdir(user):  # noqa: PTH112 - Path("") is the working directory
            return cls.of(said or Path(user, ".zenos"))
        if elsewhere:
            return cls(Path(user or os.devnull, ".zenos").absolute())  # where nothing is
        raise InvalidError(
            f"cannot use HOME={user[:1000]}: there is no such directory; set ZENOS_HOME to one for "
            "zenos, which is made if it is not there"
        )

    @classmethod
    def of(cls, path: str | Path) -> Home:
        """The home in that directory, as a user names it. InvalidError."""
        try:
            return cls(Path(path).expanduser().absolute())
        except RuntimeError:
            raise InvalidError(
                f"cannot use the home {str(path)[:1000]}: nobody here is called so; write ./ "
                "before a name that begins with ~"
            ) from None

    @property
    def id(self) -> str:
        """Twelve hex digits that stand for this home in names outside it (cgroups, sockets)."""
        return hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]

    @property
    def config(self) -> Path:
        return self.root / "zenos.yaml"

    @property
    def token(self) -> Path:
        return self.root / "token"

    @property
    def tokens(self) -> Path:
        """What is known of users' tokens: `zenos token`."""
        return self.root / "tokens.json"

    @property
    def lock(self) -> Path:
        return self.root / "daemon.lock"

    @property
    def daemon(self) -> Path:
        """`daemon.json`: pid, start time, address and port of the running daemon."""
        return self.root / "daemon.json"

    @property
    def down(self) -> Path:
        """`down.json`: which daemon has suspended work last, and what of it was not saved."""
        return self.root / "down.json"

    @property
    def daemon_log(self) -> Path:
        return self.root / "daemon.log"

    @property
    def database(self) -> Path:
        return self.root / "zenos.db"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def calls(self) -> Path:
        """What hosts of calls have accepted, and not finished."""
        return self.root / "calls"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def sockets(self) -> Path:
        """The runtime directory for unix sockets: short, since a socket's path holds 108 bytes.

        It is written down by the daemon: a worker, or a later daemon that adopts it, may have
        another environment, and must come to the same place.
        """
        try:
            said = Path((self.root / "sockets").read_text(encoding="utf-8").strip())
        except (OSError, ValueError):
            return self._sockets()
        # A copy of a home must not meet the original.
        return said if said.name == self._sockets().name else self._sockets()

    def write_sockets(self) -> None:
        """Write down where the sockets are: as before, if that place is still there, and ours.

        StorageError when that can't be written.
        """
        places = [self.sockets, self._sockets(), *self._other_sockets()]
        # Where there is none, whoever makes the directory says why it can't.
        place = next((place for place in places if _is_usable(place)), self._sockets())
        path, text = self.root / "sockets", f"{place}\n".encode()
        try:
            if not path.exists() or path.read_bytes() != text:
                durable.write_file(path, text)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def _sockets(self) -> Path:
        base = os.environ.get("XDG_RUNTIME_DIR") or ""
        if not os.path.isdir(base):  # noqa: PTH112 - the session may have ended
            base = tempfile.gettempdir()
        if len(os.fsencode(base)) > _BASE_BYTES_MAX:
            base = "/tmp"  # noqa: S108 - the directory below is made with mode 0700 and checked
        return Path(base) / f"zenos-{os.getuid()}-{self.id}"

    def _other_sockets(self) -> list[Path]:
        """Where they may lie when somebody has taken the usual place."""
        bases = (Path(tempfile.gettempdir()), *_SHARED_PLACES, self.root)
        name = self._sockets().name
        return [base / name for base in bases if len(os.fsencode(base)) <= _BASE_BYTES_MAX]

    @property
    def bus(self) -> Path:
        return self.sockets / "bus"

    def run(self, task: str, generation: int) -> Path:
        """The directory of one generation of one task."""
        return self.runs / task / str(generation)

    def checkpoint(self, task: str) -> Path:
        return self.checkpoints / task

    def newest_checkpoint(self, task: str) -> Path | None:
        """A training's newest checkpoint, by the names of their directories; None without one."""
        try:
            found = {_step_of(path): path for path in self.checkpoint(task).iterdir()}
        except OSError:
            return None
        newest = max(found, default=0)
        return found[newest] if newest else None

    def saved_step(self, task: str) -> int:
        """The step of a training's newest checkpoint; 0 without one."""
        newest = self.newest_checkpoint(task)
        return _step_of(newest) if newest is not None else 0


def _step_of(path: Path) -> int:
    """The step of a checkpoint; 0 for what is none."""
    step = path.name.removeprefix(CHECKPOINT_PREFIX)
    return int(step) if step.isdecimal() else 0


def _is_usable(place: Path) -> bool:
    """Whether it is a directory of this user, or can be made."""
    try:
        found = place.lstat()
    except FileNotFoundError:
        return place.parent.is_dir() and os.access(place.parent, os.W_OK | os.X_OK)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
