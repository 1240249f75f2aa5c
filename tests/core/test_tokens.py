"""Tokens of users: what is kept of them, who is let in, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zenos.core import limits
from zenos.core.clock import VirtualClock
from zenos.core.errors import (
    ConflictError,
    ExpiredError,
    InvalidError,
    NotFoundError,
    StorageError,
)
from zenos.core.task import Principal
from zenos.core.tokens import Token, Tokens


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def whose(tokens: Tokens, said: str) -> Token | None:
    return tokens.find(said.encode())


def test_a_token_says_its_user_and_project_and_is_kept_as_a_digest(path: Path) -> None:
    made, said = Tokens(path).create("laptop", "ann", "vision")
    assert re.fullmatch(r"zenos_[\w-]{43}", said)
    tokens = Tokens(path)  # the next daemon's
    found = whose(tokens, said)
    assert found == made
    assert found.principal == Principal(user="ann", project="vision")
    assert whose(tokens, said[:-1]) is None
    assert whose(tokens, "") is None
    assert said not in path.read_text()
    assert said.removeprefix("zenos_") not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_by_default_everybody_has_a_project_of_their_own(path: Path) -> None:
    made, _ = Tokens(path).create("laptop", "ann")
    assert made.principal == Principal(user="ann", project="ann")


def test_one_that_is_revoked_lets_nobody_in_and_its_name_is_free(path: Path) -> None:
    tokens = Tokens(path)
    _, said = tokens.create("laptop", "ann")
    _, other = tokens.create("desktop", "ann")
    token = whose(tokens, said)
    assert token is not None
    assert tokens.admits(token)
    assert tokens.revoke("laptop").user == "ann"
    assert whose(tokens, said) is None
    assert not tokens.admits(token)
    assert whose(Tokens(path), said) is None
    assert whose(Tokens(path), other) is not None
    _, again = tokens.create("laptop", "bob")
    assert not tokens.admits(token)  # of the same name, and not it
    assert again != said


def test_one_whose_time_is_over_is_told_from_others(path: Path) -> None:
    clock = VirtualClock(1000)
    tokens = Tokens(path, clock.now)
    _, said = tokens.create("guest", "ann", expires_s=60)
    clock.advance(59.9)
    token = whose(tokens, said)
    assert token is not None
    assert tokens.admits(token)
    clock.advance(0.1)
    with pytest.raises(ExpiredError, match="the token guest of ann has expired"):
        whose(tokens, said)
    assert not tokens.admits(token)
    assert [tokens.has_expired(one) for one in tokens.all()] == [True]
    with pytest.raises(ExpiredError):
        whose(Tokens(path, clock.now), said)


@pytest.mark.parametrize(
    ("name", "user", "project", "expires_s", "says"),
    [
        ("", "ann", None, None, "empty name of a token"),
        ("../x", "ann", None, None, "the name of a token '../x'"),
        ("t12", "ann", None, None, "task ids look like that"),
        ("x" * 65, "ann", None, None, "65 characters"),
        ("a", "", None, None, "empty user"),
        ("a", "a b", None, None, "the user 'a b'"),
        ("a", "ann", "a/b", None, "the project 'a/b'"),
        ("a", "ann", "", None, "empty project"),
        ("a", "local", None, None, "the user local"),
        ("a", "ann", "default", None, "the project default"),
        ("a", "default", None, None, "the project default"),
        ("a", "ann", None, 0.0, "expire in 0 s"),
        ("a", "ann", None, -1.0, "expire in -1 s"),
        ("a", "ann", None, float("nan"), "expire in nan s"),
        ("a", "ann", None, float("inf"), "expire in inf s"),
    ],
)
def test_what_may_not_be_used_is_said_and_makes_nothing(
    path: Path, name: str, user: str, project: str | None, expires_s: float | None, says: str
) -> None:
    tokens = Tokens(path)
    with pytest.raises(InvalidError, match=f"^cannot .*{re.escape(says)}"):
        tokens.create(name, user, project, expires_s)
    assert tokens.all() == []
    assert not path.exists()


def test_names_are_taken_once_and_unknown_ones_are_said(path: Path) -> None:
    tokens = Tokens(path)
    _, said = tokens.create("laptop", "ann")
    with pytest.raises(ConflictError, match="zenos token revoke laptop"):
        tokens.create("laptop", "bob")
    assert whose(tokens, said) is not None
    with pytest.raises(NotFoundError, match="did you mean 'laptop'"):
        tokens.revoke("lapto")
    with pytest.raises(NotFoundError, match="zenos token list"):
        tokens.revoke("quite-another")


def test_there_is_an_end_to_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TOKENS_MAX", 2)
    tokens = Tokens(path)
    tokens.create("a", "ann")
    tokens.create("b", "ann")
    with pytest.raises(ConflictError, match="more than 2 tokens"):
        tokens.create("c", "ann")


def test_what_could_not_be_written_has_not_happened(path: Path) -> None:
    tokens = Tokens(path)
    _, said = tokens.create("laptop", "ann")
    path.unlink()
    path.parent.rename(path.parent.with_name("away"))
    with pytest.raises(StorageError, match="cannot write"):
        tokens.create("desktop", "ann")
    with pytest.raises(StorageError, match="cannot write"):
        tokens.revoke("laptop")
    assert [token.name for token in tokens.all()] == ["laptop"]
    assert whose(tokens, said) is not None
    path.parent.with_name("away").rename(path.parent)
    tokens.revoke("laptop")
    assert Tokens(path).all() == []


def test_a_damaged_file_is_said(path: Path) -> None:
    path.write_bytes(b'{"tokens": [{"name"')
    with pytest.raises(StorageError, match=r"cannot read the tokens in .*: the file is damaged"):
        Tokens(path)
