"""Tokens of users: who comes with one acts as its user, in its project.

They are kept in one file of the home, as digests. A token is 256 random bits, so its plain SHA-256
can't be turned back: there are no words to try, and nothing for salt or a slow hash to slow down.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from zenos.core import durable, limits
from zenos.core.clock import SystemClock
from zenos.core.errors import (
    ConflictError,
    ExpiredError,
    InvalidError,
    NotFoundError,
    StorageError,
)
from zenos.core.names import TOKEN_PREFIX, check_name, check_new_name
from zenos.core.task import Principal
from zenos.core.wording import FieldError, nearest

_BYTES: Final = 32
_OPERATOR: Final = Principal()


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a token: all but itself. Times are seconds since 1970; expires: None, never.

    digest: SHA-256 of the token, in hex.
    """

    name: str
    user: str
    project: str
    created: float
    expires: float | None = None
    digest: str = ""

    @property
    def principal(self) -> Principal:
        """As whom its holder acts."""
        return Principal(user=self.user, project=self.project)


class _File(msgspec.Struct, kw_only=True):
    tokens: list[Token] = []
    format: int = 1


class Tokens:
    """All tokens of users. A change is on the disk before it counts; threads may ask at once."""

    def __init__(self, path: Path | None = None, now: Callable[[], float] | None = None) -> None:
        """path: the file, None for none; StorageError when it can't be read. now: seconds."""
        self._path = path
        self._now = now or _wall_time()
        self._changing = threading.Lock()
        self._use(_read(path) if path is not None else [])

    def _use(self, tokens: list[Token]) -> None:
        self._by_name = {token.name: token for token in tokens}
        self._by_digest = {token.digest: token for token in tokens}

    def all(self) -> list[Token]:
        """Those that there are, expired ones too, by name."""
        return sorted(self._by_name.values(), key=lambda token: token.name)

    def find(self, given: bytes) -> Token | None:
        """The token that was given, or None; ExpiredError where its time is over.

        It is looked up by its digest: how long that takes may tell of digests, from which no token
        follows, and nothing of tokens.
        """
        token = self._by_digest.get(hashlib.sha256(given).hexdigest())
        if token is not None and self.has_expired(token):
            raise ExpiredError(
                f"cannot let you in: the token {token.name} of {token.user} has expired; ask "
                "whoever runs this daemon for another"
            )
        return token

    def has_expired(self, token: Token) -> bool:
        """Whether its time is over."""
        return token.expires is not None and token.expires <= self._now()

    def admits(self, token: Token) -> bool:
        """Whether one that was found is still good."""
        return self._by_name.get(token.name) is token and not self.has_expired(token)

    def create(
        self, name: str, user: str, project: str | None = None, expires_s: float | None = None
    ) -> tuple[Token, str]:
        """Make a token, and say it this once. project: by default one called as the user.

        Raises InvalidError for what may not be used, ConflictError for a name that is taken, and
        StorageError.
        """
        name, user, project = checked(name, user, project, expires_s)
        said = TOKEN_PREFIX + secrets.token_urlsafe(_BYTES)
        now = self._now()
        token = Token(
            name=name,
            user=user,
            project=project,
            created=now,
            expires=None if expires_s is None else now + expires_s,
            digest=hashlib.sha256(said.encode()).hexdigest(),
        )
        with self._changing:
            if name in self._by_name:
                raise ConflictError(
                    f"cannot make another token {name}: there is one; revoke that first (zenos "
                    f"token revoke {name}), or choose another name"
                )
            if len(self._by_name) >= limits.TOKENS_MAX:
                raise ConflictError(
                    f"cannot have more than {limits.TOKENS_MAX} tokens: revoke some first"
                )
            self._keep([*self._by_name.values(), token])
        return token, said

    def revoke(self, name: str) -> Token:
        """Take a token back: it lets nobody in any more. NotFoundError, StorageError."""
        with self._changing:
            token = self._by_name.get(name)
            if token is None:
                hint = nearest(name, list(self._by_name)) or ": 'zenos token list' shows them"
                raise NotFoundError(f"cannot find a token {name!a}{hint}")
            self._keep([other for other in self._by_name.values() if other is not token])
        return token

    def _keep(self, tokens: list[Token]) -> None:
        if self._path is not None:
            try:
                data = msgspec.json.format(msgspec.json.encode(_File(tokens=tokens)), indent=1)
                durable.write_file(self._path, data, mode=0o600)
            except OSError as error:
                raise StorageError(f"cannot write {self._path}: {error.strerror}") from error
        self._use(tokens)


def _wall_time() -> Callable[[], float]:
    """Seconds since 1970, which a clock that is set back doesn't take back.

    The clock alone would stand still while the machine sleeps.
    """
    clock = SystemClock()
    return lambda: max(clock.now(), time.time())


def checked(
    name: str, user: str, project: str | None, expires_s: float | None
) -> tuple[str, str, str]:
    """Name, user and project as they are kept; InvalidError for what no token may have."""
    name, user = check_new_name(name, "name of a token"), check_name(user, "user")
    project = check_name(user if project is None else project, "project")
    if user == _OPERATOR.user:
        raise InvalidError(
            f"cannot use the user {user}: that is who has the token of the home; give another"
        )
    if project == _OPERATOR.project:
        raise InvalidError(
            f"cannot use the project {project}: it is that of who has the token of the home, and "
            "who is of a project may cancel what is its; give another"
        )
    if expires_s is not None and not 0 < expires_s <= limits.EXPECTED_S_MAX:
        raise FieldError(
            f"cannot let a token expire in {expires_s:g} s: give more than 0, at most ten years "
            f"({limits.EXPECTED_S_MAX / 86400:g} days), or leave it out",
            "expires_s",
        )
    return name, user, project


def _read(path: Path) -> list[Token]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).tokens
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise StorageError(
            f"cannot read the tokens in {path}: the file is damaged; restore it, or delete it: "
            "then users need new ones"
        ) from None
