"""`zenos bus`, and the clients' view of durable topics, against the real API and topics."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.cli.conftest import LIMIT_S, Daemon, zenos
from tests.cli.proxy import CuttingProxy
from zenos.bus import operations
from zenos.bus import topics as ev
from zenos.bus.bodies import Encoded, stored
from zenos.bus.codec import encode_value
from zenos.bus.topic import Delivery
from zenos.cli.rows import body_text
from zenos.client import Client, MessageInfo, connect, connect_async
from zenos.core import limits
from zenos.core.contents import ARRAYS, CONTENT_TYPE, MESSAGEPACK
from zenos.core.errors import InvalidError, NotFoundError, UnavailableError

TOPIC = "jobs/resize"


def ask(daemon: Daemon, make: type[ev.Event], **fields: Any) -> Any:
    async def call() -> Any:
        topics = daemon.double.topics
        return await topics.ask(make(request=topics.next_request(), **fields))

    return asyncio.run_coroutine_threadsafe(call(), daemon._loop).result(LIMIT_S)


def receive(daemon: Daemon) -> Delivery:
    (given,) = ask(daemon, ev.Receive, topic=TOPIC, receiver="worker")
    assert isinstance(given, Delivery)
    return given


def kill(daemon: Daemon, reason: str) -> None:
    """Fail a message until it is given up."""
    for _ in range(limits.DELIVERIES_MAX):
        given = receive(daemon)
        fields = {"delivery": given.number, "id": given.message.id, "reason": reason}
        ask(daemon, ev.Nack, topic=TOPIC, **fields)


def test_send_and_look(daemon: Daemon) -> None:
    ran = zenos("bus", "topics")
    assert (ran.code, ran.out) == (0, "")
    assert "no messages are kept" in ran.err
    ran = zenos(
        "bus", "send", TOPIC, "grüße", "--id", "m1", "--header", "a=b", "--priority", "high"
    )
    assert (ran.code, ran.out) == (0, "m1\n")
    ran = zenos("bus", "send", TOPIC, "again", "--id", "m1")
    assert ran.code == 0
    assert "dropped" in ran.err
    assert zenos("bus", "topics").out.split("\n")[1].split()[:4] == [TOPIC, "1", "0", "0"]
    (shown,) = zenos("bus", "peek", TOPIC, "--json").json
    assert (shown["body"], shown["headers"], shown["priority"]) == ("grüße", {"a": "b"}, 75)
    assert "grüße" in zenos("bus", "peek", TOPIC).out
    given = receive(daemon)
    assert "worker" in zenos("bus", "peek", TOPIC, "--leased").out
    assert given.message.body.decode() == "grüße"


def test_a_body_from_stdin_is_its_bytes(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = b"\x00\xff\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    with connect() as client:
        client.bus.send(TOPIC, raw)
        (message,) = client.bus.messages(TOPIC)
    assert message.content == raw
    assert "3 bytes" in zenos("bus", "peek", TOPIC).out


def test_dead_replay_and_purge(daemon: Daemon) -> None:
    for id_ in ("m1", "m2"):
        assert zenos("bus", "send", TOPIC, id_, "--id", id_).code == 0
        kill(daemon, f"no photo {id_}")
    shown = zenos("bus", "dead", TOPIC).out
    assert "no photo m1" in shown
    assert "no photo m2" in shown
    for ids in (["m7"], ["m1", "m7"]):  # none of them, where one isn't there
        ran = zenos("bus", "replay", TOPIC, *ids)
        assert (ran.code, "cannot find a dead message 'm7'" in ran.err) == (3, True)
    ran = zenos("bus", "replay", TOPIC, "m2")
    assert (ran.code, ran.err) == (0, "1 message will be delivered again\n")
    assert [m["id"] for m in zenos("bus", "peek", TOPIC, "--json").json] == ["m2"]
    assert zenos("bus", "purge", TOPIC, "--dead", "--yes", "--json").json == {"count": 1}
    assert zenos("bus", "purge", TOPIC, "--yes").err == "1 message dropped\n"
    assert zenos("bus", "peek", TOPIC, "--json").code == 0
    assert zenos("bus", "peek", TOPIC, "--json").json == []


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("purge", "jobs/none", "--yes"), 3, "cannot find the topic jobs/none"),
        (("replay", "jobs/none"), 3, "cannot find the topic jobs/none"),
        (("send", "../x", "y"), 2, "cannot use"),
        (("purge", "jobs/none"), 2, "cannot ask"),
        (("send", TOPIC, "y", "--priority", "900"), 2, "cannot use priority"),
        (("send", TOPIC, "y", "--delay", "soon"), 2, "cannot read delay"),
        (("send", TOPIC, "y", "--header", "x"), 2, "cannot read the header"),
        (("peek", TOPIC, "--limit", "0"), 2, "cannot"),
        (("send", TOPIC), 2, "cannot"),
    ],
)
def test_what_cannot_be_done_is_said(
    daemon: Daemon, args: tuple[str, ...], code: int, says: str
) -> None:
    ran = zenos("bus", *args)
    assert ran.code == code, ran.err
    assert says in ran.err
    assert ran.out == ""


def test_a_message_whose_connection_is_lost_is_kept_once(daemon: Daemon) -> None:
    for cut in ("before", "after"):
        with CuttingProxy(daemon.url, cut) as proxy, connect(proxy.url) as far:  # type: ignore[arg-type]
            far.bus.send(TOPIC, cut)
            assert proxy.connections >= 2
    with connect() as client:
        assert [m.body for m in client.bus.messages(TOPIC)] == ["before", "after"]


def test_a_tail_shows_what_happens(daemon: Daemon, client: Client) -> None:
    found: list[MessageInfo] = []
    listening = threading.Event()

    def listen() -> None:
        with connect() as other, other.bus.tail(TOPIC) as tail:
            listening.set()
            for message in tail:
                found.append(message)
                if message.event == "acknowledged":
                    return

    thread = threading.Thread(target=listen)
    thread.start()
    assert listening.wait(LIMIT_S)
    client.bus.send(TOPIC, "hello", id="m1")
    given = receive(daemon)
    ask(daemon, ev.Ack, topic=TOPIC, delivery=given.number, id="m1")
    thread.join(LIMIT_S)
    assert [m.event for m in found] == ["waiting", "delivered", "acknowledged"]
    assert (found[0].body, found[1].receiver) == ("hello", "worker")


def test_a_tail_that_is_cut_says_so_in_plain_words(daemon: Daemon) -> None:
    with (
        CuttingProxy(daemon.url) as proxy,
        connect(proxy.url) as far,
        far.bus.tail(TOPIC) as happening,
    ):
        proxy.cut_all()
        with pytest.raises(UnavailableError) as caught:
            next(happening)
    assert caught.value.message == "cannot go on: the connection to the daemon was lost"


def test_the_async_client_does_the_same(daemon: Daemon) -> None:
    async def drive() -> None:
        async with connect_async() as client:
            sent = await client.bus.send(TOPIC, "hello", id="m1", deadline_s=3600)
            assert (sent.id, sent.duplicate) == ("m1", False)
            assert (await client.bus.send(TOPIC, "hello", id="m1")).duplicate
            (topic,) = await client.bus.topics()
            assert (topic.name, topic.waiting) == (TOPIC, 1)
            (message,) = await client.bus.messages(TOPIC)
            assert message.deadline == pytest.approx(message.sent + 3600)
            assert await client.bus.purge(TOPIC) == 1
            with pytest.raises(InvalidError):
                await client.bus.send("a//b", "x")
            with pytest.raises(NotFoundError):
                await client.bus.replay("jobs/none")
            async with client.bus.tail(TOPIC) as tail:
                await client.bus.send(TOPIC, "again", id="m2")
                assert (await anext(tail)).id == "m2"

    asyncio.run(drive())


def test_purging_asks_in_a_terminal(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect() as client:
        client.bus.send(TOPIC, "x")
        monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda self: True)
        ran = zenos("bus", "purge", TOPIC, stdin="n\n")
        assert ran.code == 1
        assert len(client.bus.messages(TOPIC)) == 1
        assert zenos("bus", "purge", TOPIC, stdin="").code == 130
        assert zenos("bus", "purge", TOPIC, stdin="y\n").code == 0
        assert client.bus.messages(TOPIC) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1, "1"),
        ("work", '"work"'),
        ({"k": [1, 2]}, '{"k":[1,2]}'),
        (np.ones((2, 3)), "<float64[2, 3]>"),
        ({"step": 7, "gradient": np.ones(3, "int8")}, '{"step":7,"gradient":"<int8[3]>"}'),
        (b"text", "text"),
        (b"\xff", "1 byte"),
        ([0] * 100_000, "100,005 bytes"),
        ({1.5: None}, '{"1.5":null}'),
        (msgspec.msgpack.Ext(9, b"x"), '"<extension 9>"'),
    ],
)
def test_what_programs_send_is_shown_as_its_value(
    daemon: Daemon, client: Client, value: Any, shown: str
) -> None:
    made = encode_value(value)
    encoded = made if isinstance(made, Encoded) else stored(made)
    headers = operations.with_type({}, encoded)
    with client.bus.tail(TOPIC) as happening:
        client.bus.send(TOPIC, bytes(encoded.body), headers=headers)
        assert body_text(next(happening)) == shown
    assert shown in zenos("bus", "peek", TOPIC).out
    kill(daemon, "")
    assert shown in zenos("bus", "dead", TOPIC).out


@pytest.mark.parametrize("kind", [MESSAGEPACK, ARRAYS, "other/type"])
def test_a_body_that_is_not_what_it_says_is_counted(
    daemon: Daemon, client: Client, kind: str
) -> None:
    for body in (b"\xc1\xff", b"\x91" * 10_000, b"", b"\x00\x00\x00\x01\x90"):
        client.bus.send(TOPIC, body, headers={CONTENT_TYPE: kind})
    out = zenos("bus", "peek", TOPIC).out
    assert all(said in out for said in ("2 bytes", "10,000 bytes", "0 bytes", "5 bytes"))


def test_how_a_body_is_encoded_is_not_said_by_hand(daemon: Daemon) -> None:
    ran = zenos("bus", "send", TOPIC, "x", "--header", "content-type=evil")
    assert ran.code != 0
    assert "cannot set the header 'content-type'" in ran.err
    assert zenos("bus", "peek", TOPIC).out == ""
