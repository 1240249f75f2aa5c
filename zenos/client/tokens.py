"""Tokens of users, for the clients: for who has the token of the home."""

from __future__ import annotations

import math
from urllib.parse import quote

import msgspec

from zenos.client.bus import AsyncRun, Run
from zenos.client.calls import Call
from zenos.core.errors import InvalidError
from zenos.core.names import check_name


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """A token of a user. created, expires: seconds since 1970; None: it never expires.

    token: the token itself, where it has just been made.
    """

    name: str
    user: str
    project: str
    created: float
    expires: float | None = None
    expired: bool = False
    token: str | None = None


class TokenList(msgspec.Struct):
    """Answer of GET /api/tokens."""

    tokens: list[TokenView]


def _all() -> Call[TokenList]:
    return Call(method="GET", path="/api/tokens", into=TokenList)


def _create(name: str, user: str, project: str | None, expires_s: float | None) -> Call[TokenView]:
    if expires_s is not None and not math.isfinite(expires_s):
        raise InvalidError(  # JSON would make null of it: never
            f"cannot let a token expire in {expires_s} s: give a finite number, or leave it out"
        )
    body = {"name": name, "user": user, "project": project, "expires_s": expires_s}
    return Call(
        method="POST",
        path="/api/tokens",
        into=TokenView,
        body=msgspec.json.encode(body),
        headers={"Content-Type": "application/json"},
        # The answer says the token, and only the first: who lost it has to make another.
        repeatable=False,
    )


def _revoke(name: str) -> Call[TokenView]:
    path = f"/api/tokens/{quote(check_name(name, 'name of a token'), safe='')}"
    gone = TokenView(name=name, user="", project="", created=0.0)
    return Call(method="DELETE", path=path, into=TokenView, gone=gone)


class UserTokens:
    """Tokens of users: `client.tokens`. RefusedError for who has one of these."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def all(self) -> list[TokenView]:
        """All of them by name, expired ones too; without the tokens themselves."""
        return self._run(_all()).tokens

    def create(
        self,
        name: str,
        *,
        user: str,
        project: str | None = None,
        expires_s: float | None = None,
    ) -> TokenView:
        """Make one; its `token` is said this once. project: by default one called as the user.

        Raises ConflictError where the name is taken, InvalidError for what may not be used.
        """
        return self._run(_create(name, user, project, expires_s))

    def revoke(self, name: str) -> TokenView:
        """Take one back: its holder's next request is refused. NotFoundError for an unknown one."""
        return self._run(_revoke(name))


class AsyncUserTokens:
    """Tokens of users: `client.tokens` of the async client."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def all(self) -> list[TokenView]:
        """As UserTokens.all."""
        return (await self._run(_all())).tokens

    async def create(
        self,
        name: str,
        *,
        user: str,
        project: str | None = None,
        expires_s: float | None = None,
    ) -> TokenView:
        """As UserTokens.create."""
        return await self._run(_create(name, user, project, expires_s))

    async def revoke(self, name: str) -> TokenView:
        """As UserTokens.revoke."""
        return await self._run(_revoke(name))
