"""No function comes in but over the bus, from a program of the same user outside any task."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest
from msgspec.structs import replace

import zenos
from tests.calls import work
from tests.processes import until
from tests.system.harness import System
from zenos.bus import operations
from zenos.bus.bodies import Encoded
from zenos.bus.operations import Sending
from zenos.calls import finding, wire
from zenos.calls.finding import Wanted
from zenos.core.errors import InvalidError, RefusedError
from zenos.core.names import calls_topic


def host(system: System) -> str:
    """The id of a host that runs."""
    zenos.call(work.increment, 1).result(60)
    return next(v.task.id for v in system.ask(lambda c: c.tasks(kind="call", state="running")))


ASKS: dict[str, Callable[[httpx.Client, str], httpx.Response]] = {
    "send": lambda http, topic: http.post(
        "/api/bus/messages", json={"topic": topic, "body": "gASVCwAAAAAAAACMBXNoZWxslC4="}
    ),
    "list": lambda http, topic: http.get("/api/bus/messages", params={"topic": topic}),
    "tail": lambda http, topic: http.get("/api/bus/tail", params={"topic": topic}),
    "replay": lambda http, topic: http.post("/api/bus/replay", json={"topic": topic}),
    "purge": lambda http, topic: http.post("/api/bus/purge", json={"topic": topic}),
}


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("name", ["zenos", "zenos/calls", "zenos/calls/t1", "zenos/x/y/z"])
def test_the_network_may_do_nothing_with_an_internal_topic(
    shared: System, ask: str, name: str
) -> None:
    with zenos.connect(home=shared.home.root) as client:
        answer = ASKS[ask](client.http, name)
    assert answer.status_code == 403
    assert "for zenos' own parts" in answer.json()["error"]["message"]


def test_no_call_is_ever_seen_as_a_message(shared: System) -> None:
    host(shared)
    topics = shared.ask(lambda client: client.bus.topics())
    assert not [topic.name for topic in topics if topic.name.startswith("zenos")]


def test_nothing_durable_and_nobody_else_on_the_topic_of_a_host(shared: System) -> None:
    topic = calls_topic(host(shared))
    with zenos.bus.connect() as bus:
        with pytest.raises(RefusedError, match="zenos' own parts"):
            bus.topic(topic, durable=True).send(b"x")
        with pytest.raises(RefusedError, match="zenos' own parts"):
            bus.topic(topic, durable=True).receive(timeout_s=10)
        with pytest.raises(RefusedError, match="can only be called"):
            bus.topic(topic).receive(timeout_s=10)
        with pytest.raises(RefusedError, match="can only be called"):
            bus.topic(topic).subscribe(timeout_s=10)
        with pytest.raises(RefusedError, match="can only be called"):
            bus.topic(topic).send(b"x")
        with pytest.raises(RefusedError, match="can only be called"):
            bus.topic(topic).publish(b"x")


def test_no_task_may_be_granted_it_nor_use_it(shared: System) -> None:
    topic = calls_topic(host(shared))
    for granted in ("zenos", topic):
        with pytest.raises(RefusedError, match="zenos' own parts"):
            shared.ask(lambda c, name=granted: c.submit(["true"], topics=[name]))
    script = f"import zenos; zenos.bus.connect().topic({topic!r}).call(b'', timeout_s=10)"
    task = shared.ask(lambda client: client.submit([sys.executable, "-c", script])).id
    until(lambda: shared.ask(lambda client: client.task(task)).task.is_ended)
    tail = shared.ask(lambda client: client.task(task)).task.outcome
    assert tail is not None
    assert f"cannot use the topic {topic}" in tail.log_tail


def test_a_program_in_a_task_calls_as_its_user(shared: System) -> None:
    script = "import zenos; print(zenos.call(len, 'abc').result(60))"
    task = shared.ask(lambda client: client.submit([sys.executable, "-c", script], cpu=0.1)).id
    until(lambda: shared.ask(lambda client: client.task(task)).task.is_ended)
    outcome = shared.ask(lambda client: client.task(task)).task.outcome
    assert outcome is not None
    assert (outcome.exit_code, outcome.log_tail.strip()) == (0, "3")


def connection(system: System) -> socket.socket:
    """A connection to a host of which nothing was said yet."""
    task = host(system)
    path, hello = finding.address.find(system.home.root)
    ours, theirs = socket.socketpair()
    with zenos.bus.Bus(path, hello) as bus:
        body = Encoded(b"", descriptors=(theirs.detach(),))
        bus.run(operations.call(bus.session, calls_topic(task), body, Sending(timeout_s=60)))
    ours.settimeout(60)
    return ours


def answers(link: socket.socket) -> list[object]:
    """What the host says until it closes."""
    frames, found = wire.Frames(wire.from_host), []
    with suppress(ConnectionResetError):
        while data := link.recv(65536):
            found += frames.take(data)
    return found


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        wire.LENGTH.pack(5) + b"\xc1bad!",
        wire.frame(wire.Cancel([1])),
        wire.frame(wire.Calls([], [])),
        wire.frame(wire.Results([])),
    ],
    ids=["too long", "no message", "no hello", "calls first", "a host's word"],
)
def test_what_makes_no_sense_ends_its_connection_alone(shared: System, said: bytes) -> None:
    with connection(shared) as link:
        link.sendall(said)
        (refused,) = answers(link)
    assert isinstance(refused, wire.Refused)
    assert zenos.call(work.increment, 1).result(60) == 2


def test_another_python_is_refused(shared: System) -> None:
    with connection(shared) as link:
        link.sendall(wire.frame(wire.Hello("zenos 0.1.0, bytecode 00", b"me", [])))
        (refused,) = answers(link)
    assert isinstance(refused, wire.Refused)
    assert "cannot run functions of another Python" in refused.message


def test_an_interpreter_without_its_whole_path_is_refused() -> None:
    spec = Wanted(1, 0, None, None, None, 1).spec()
    with pytest.raises(InvalidError, match="whole path"):
        replace(spec, work=replace(spec.work, python="python3")).check()
