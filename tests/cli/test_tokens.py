"""zenos token, and the other commands with a user's token, from another home."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.cli.conftest import Daemon, until, zenos
from zenos.client import connect, connect_async
from zenos.client.tokens import TokenView
from zenos.core.errors import ConflictError, InvalidError, NotFoundError, RefusedError
from zenos.core.task import Outcome


@pytest.fixture
def far(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Another machine, with an empty home, that knows the daemon's address."""
    monkeypatch.setenv("ZENOS_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("ZENOS_HOST", daemon.url)
    return monkeypatch


def token(daemon: Daemon, name: str, *more: str) -> str:
    """A new token, made by who has the home."""
    with pytest.MonkeyPatch.context() as here:
        here.setenv("ZENOS_HOME", str(daemon.home.root))
        for variable in ("ZENOS_HOST", "ZENOS_TOKEN"):
            here.delenv(variable, raising=False)
        made = zenos("token", "create", name, *more)
        assert made.code == 0, made.err
        return made.out.strip()


def test_create_list_and_revoke(daemon: Daemon) -> None:
    assert zenos("token", "list").err == "no user has a token; 'zenos token create' makes one\n"
    made = zenos("token", "create", "laptop", "--user", "ann", "--project", "vision")
    said = made.out.strip()
    assert said.startswith("zenos_")
    assert "laptop lets in ann, of the project vision, until it is revoked" in made.err
    timed = zenos("token", "create", "guest", "--user", "bob", "--expires", "30d", "--json").json
    assert (timed["project"], timed["expires"]) == ("bob", timed["created"] + 30 * 86400)
    listed = zenos("token", "list").out
    assert [line.split()[:3] for line in listed.splitlines()[1:]] == [
        ["guest", "bob", "bob"],
        ["laptop", "ann", "vision"],
    ]
    assert "never" in listed
    assert said not in listed
    assert [one.keys() & {"token", "digest"} for one in zenos("token", "list", "--json").json] == [
        set(),
        set(),
    ]
    assert zenos("token", "revoke", "guest", "--json").json["user"] == "bob"
    assert "laptop of ann is revoked" in zenos("token", "revoke", "laptop").err
    actions = [row["action"] for row in zenos("audit", "--json").json]
    assert actions == ["revoke", "revoke", "grant", "grant"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("create", "laptop"), 2, "cannot do without --user"),
        (("create", "a b", "--user", "ann"), 2, "cannot use the name of a token 'a b'"),
        (("create", "x", "--user", "local"), 2, "who has the token of the home"),
        (("create", "x", "--user", "ann", "--project", "a/b"), 2, "cannot use the project"),
        (("create", "x", "--user", "ann", "--expires", "soon"), 2, "cannot read --expires 'soon'"),
        (("create", "x", "--user", "ann", "--expires", "-1d"), 2, "cannot read --expires '-1d'"),
        (("create", "x", "--user", "ann", "--expires", "0d"), 2, "at most ten years (3650 days)"),
        (("create", "there", "--user", "ann"), 4, "zenos token revoke there"),
        (("revoke", "ther"), 3, "did you mean 'there'?"),
        (("revoke", "../x"), 2, "cannot use the name of a token"),
    ],
)
def test_what_cannot_be_is_said(
    daemon: Daemon, arguments: tuple[str, ...], code: int, says: str
) -> None:
    token(daemon, "there", "--user", "eve")
    ran = zenos("token", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.err


def test_a_user_works_from_another_home(daemon: Daemon, far: pytest.MonkeyPatch) -> None:
    far.setenv("ZENOS_TOKEN", token(daemon, "anns", "--user", "ann", "--project", "vision"))
    ann = zenos("submit", "--name", "anns", "--", "work").out.strip()
    assert "USER" not in zenos("ps").out  # all are of one
    assert "ann, of the project vision" in zenos("status").out
    far.setenv("ZENOS_TOKEN", token(daemon, "bobs", "--user", "bob"))
    bob = zenos("submit", "--name", "bobs", "--", "work").out.strip()
    zenos("submit", "--name", "sweep", "--array", "0-1", "--", "work")
    lines = zenos("ps").out.splitlines()
    assert lines[0].split()[:4] == ["ID", "NAME", "USER", "KIND"]
    whose = {line.split()[1]: line.split()[2] for line in lines[1:]}
    assert whose == {"sweep": "bob", "bobs": "bob", "anns": "ann"}
    assert "ann (vision)" in zenos("ps").out
    assert "ann (vision)" in zenos("show", ann).out
    tree = zenos("ps", "--threads").out.splitlines()
    assert tree[0].split()[:4] == ["ID", "NAME", "USER", "POOL"]
    assert {line.split()[1]: line.split()[2] for line in tree[1:]}["anns"] == "ann"
    # What is one's own is done, whatever else was named.
    far.setenv("ZENOS_TOKEN", token(daemon, "eves", "--user", "eve"))
    eve = zenos("submit", "--", "work").out.strip()
    refused = zenos("cancel", "sweep", eve)  # an array of somebody else's
    assert (refused.code, "belongs to bob" in refused.err) == (4, True)
    until(lambda: daemon.double.view.tasks[eve].stopping == "cancel")
    far.setenv("ZENOS_TOKEN", token(daemon, "bobs2", "--user", "bob"))
    refused = zenos("cancel", ann, bob)
    assert refused.code == 4
    assert f"cannot cancel {ann}: it belongs to ann" in refused.err
    until(lambda: daemon.double.view.tasks[bob].stopping == "cancel")
    assert daemon.double.view.tasks[ann].stopping is None


def test_what_concerns_the_machine_is_refused(daemon: Daemon, far: pytest.MonkeyPatch) -> None:
    far.setenv("ZENOS_TOKEN", token(daemon, "anns", "--user", "ann"))
    for command in (
        ("down",),
        ("node", "drain", "local"),
        ("token", "list"),
        ("token", "create", "x", "--user", "ann"),
        ("token", "revoke", "anns"),
        ("bus", "purge", "jobs", "--yes"),
    ):
        ran = zenos(*command)
        assert ran.code == 4, (command, ran.err)
        assert "cannot do that as ann: it is for the operator alone" in ran.err, command
    assert daemon.double.stopped == []
    assert daemon.double.view.nodes["local"].takes_work


def test_a_token_that_was_revoked_is_told_as_a_users(
    daemon: Daemon, far: pytest.MonkeyPatch
) -> None:
    far.setenv("ZENOS_TOKEN", token(daemon, "anns", "--user", "ann"))
    assert zenos("ps").code == 0
    with connect(home=daemon.home.root, token=daemon.home.token.read_text()) as operator:
        assert operator.tokens.revoke("anns").user == "ann"
    ran = zenos("ps")
    assert ran.code == 4
    assert "the token in ZENOS_TOKEN is a user's, which was revoked" in ran.err
    assert "Traceback" not in ran.err


def test_the_clients_make_them_too(daemon: Daemon) -> None:
    with connect() as made:
        one: TokenView = made.tokens.create("one", user="ann", expires_s=60)
        assert one.token is not None
        with pytest.raises(InvalidError, match="expire in nan s"):
            made.tokens.create("two", user="ann", expires_s=float("nan"))
        with pytest.raises(ConflictError):
            made.tokens.create("one", user="ann")
        assert [(t.name, t.token) for t in made.tokens.all()] == [("one", None)]
    with connect(daemon.url, token=one.token) as ann:
        task = ann.submit(["true"])
        assert task.task.principal.user == "ann"
        assert (ann.status().user, ann.status().operator) == ("ann", False)
        with pytest.raises(RefusedError, match="for the operator alone"):
            ann.tokens.all()
        until(lambda: daemon.state(task.id) == "running")
        daemon.end(task.id, Outcome(exit_code=0))
        assert task.wait(20).is_ended

    async def awaited() -> list[TokenView]:
        async with connect_async() as client:
            await client.tokens.create("three", user="bob", project="speech")
            await client.tokens.revoke("one")
            with pytest.raises(NotFoundError):
                await client.tokens.revoke("one")
            return await client.tokens.all()

    assert [(t.name, t.project) for t in asyncio.run(awaited())] == [("three", "speech")]
