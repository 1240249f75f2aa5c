"""Whatever comes instead of an answer, a client's methods raise zenos' errors and no others."""

from __future__ import annotations

import gzip
import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import pytest

from zenos.client import Audit, Bus, Client, Generation, Live, TaskHandle, UserTokens, connect
from zenos.client import connect_async as connect_async
from zenos.client.aio import AsyncTaskHandle
from zenos.client.types import TaskView
from zenos.core.errors import InvalidError, UnavailableError, ZenosError
from zenos.core.specs import ProgramSpec
from zenos.core.task import Kind, Principal, State, Task, TaskSpec

TASK: Final = TaskView(
    task=Task(
        id="t1",
        principal=Principal(),
        spec=TaskSpec(work=ProgramSpec(argv=["work"]), name="work"),
        submitted=1.0,
        kind=Kind.RUN,
        state=State.RUNNING,
    )
)


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """A whole answer; length: what it says of itself, if that is wrong."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode("latin-1") + body


EVENTS: Final = "Content-Type: text/event-stream"
JSON: Final = "Content-Type: application/json"
ANSWERS: Final = {
    "nothing": b"",
    "half a status line": b"HTTP/1.1 20",
    "half of the headers": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "half of the body": http(b'{"tasks": [', JSON, length=1000),
    "half a stream": http(b': zenos\n\nevent: task\ndata: {"seq"', EVENTS, length=1000),
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a web page": http(b"<html>Welcome!</html>", "Content-Type: text/html"),
    "no body": http(b"", JSON),
    "no content": b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    "null": http(b"null", JSON),
    "another type": http(b"[1]", JSON),
    "no fields": http(b"{}", JSON),
    "no Unicode": http(b'{"tasks": "\xff\xfe"}', JSON),
    "nested too deeply": http(b'{"x":' * 100_000, JSON),
    "half of a gzip": http(gzip.compress(b"{}" * 999)[:20], "Content-Encoding: gzip"),
    "no gzip": http(b"{}", "Content-Encoding: gzip"),
    "a redirect": http(b"", "Location: /there", status="302 Found"),
    "a proxy's error": http(b"<h1>Bad gateway</h1>", status="502 Bad Gateway"),
    "an error of another shape": http(b'{"error": 5}', JSON, status="500 Oops"),
    "an error nested too deeply": http(b"[" * 100_000, JSON, status="400 Bad Request"),
    "another wait": http(b"{}", "Retry-After: \xb2", status="503 Service Unavailable"),
    "a long wait": http(b"{}", "Retry-After: " + "9" * 5000, status="503 Service Unavailable"),
    "a place in the log": http(b"text", "Zenos-Log-Offset: " + "9" * 5000),
    "an event that is no JSON": http(b"event: task\ndata: {\n\n", EVENTS),
    "an event of another type": http(b"event: task\ndata: [1]\n\n", EVENTS),
    "an error of no shape in a stream": http(b"event: error\ndata: 1\n\n", EVENTS),
    "an event nested too deeply": http(b"data: " + b"[" * 100_000 + b"\n\n", EVENTS),
    "logprobs that don't match": http(
        b'data: {"choices": [{"logprobs": {"tokens": ["a", "b"], "token_logprobs": [1]}}]}\n\n'
        b"data: [DONE]\n\n",
        EVENTS,
    ),
    "logprobs of another type": http(
        b'data: {"choices": [{"logprobs": {"content": [{"text": "a"}]}}]}\n\ndata: [DONE]\n\n',
        EVENTS,
    ),
}

Ask = Callable[[Any], Any]
OF_CLIENT: Final[dict[str, Ask]] = {
    "health": lambda c: c.health(),
    "status": lambda c: c.status(),
    "shut_down": lambda c: c.shut_down("leave"),
    "submit": lambda c: c.submit(["work"]),
    "train": lambda c: c.train(model="m", arch="llama-nano", data="x"),
    "create": lambda c: c.create("m", "llama-nano"),
    "tasks": lambda c: c.tasks(),
    "task": lambda c: c.task("t1"),
    "cancel": lambda c: c.cancel("t1"),
    "events": lambda c: c.events("t1"),
    "serve": lambda c: c.serve("m"),
    "stop": lambda c: c.stop("m"),
    "roll_back": lambda c: c.roll_back("m"),
    "deployments": lambda c: c.deployments(),
    "generate": lambda c: c.generate("m", "x", logprobs=1),
    "look": lambda c: c.look("t1"),
    "models": lambda c: c.models(),
    "damaged_models": lambda c: c.damaged_models(),
    "model": lambda c: c.model("m"),
    "remove": lambda c: c.remove("m"),
    "alias": lambda c: c.alias("m", "prod", 1),
    "copy": lambda c: c.copy("m", "n"),
    "import_model": lambda c: c.import_model("/m", "m"),
    "export_model": lambda c: c.export_model("m", "/m"),
    "nodes": lambda c: c.nodes(),
    "cordon": lambda c: c.cordon("local"),
    "drain": lambda c: c.drain("local"),
    "uncordon": lambda c: c.uncordon("local"),
    "pause": lambda c: c.pause("t1"),
    "suspend": lambda c: c.suspend("t1"),
    "resume": lambda c: c.resume("t1"),
    "nice": lambda c: c.nice("t1", 60),
    "threads": lambda c: c.threads("t1"),
    "submit_array": lambda c: c.submit_array(["work"], "0-3"),
    "submit_batch": lambda c: c.submit_batch([TASK.task.spec]),
    "array": lambda c: c.array("a1"),
    "array_tasks": lambda c: c.array_tasks("a1"),
    "cancel_array": lambda c: c.cancel_array("a1"),
    "collapsed": lambda c: c.collapsed(),
    "why": lambda c: c.why("t1"),
    "history": lambda c: c.history("t1"),
    "plan": lambda c: c.plan(),
}
OF_BUS: Final[dict[str, Ask]] = {
    "topics": lambda c: c.bus.topics(),
    "messages": lambda c: c.bus.messages("jobs"),
    "send": lambda c: c.bus.send("jobs", "x"),
    "replay": lambda c: c.bus.replay("jobs"),
    "purge": lambda c: c.bus.purge("jobs"),
    "tail": lambda c: c.bus.tail("jobs"),
}
OF_AUDIT: Final[dict[str, Ask]] = {"rows": lambda c: c.audit.rows()}
OF_TOKENS: Final[dict[str, Ask]] = {
    "all": lambda c: c.tokens.all(),
    "create": lambda c: c.tokens.create("laptop", user="ann"),
    "revoke": lambda c: c.tokens.revoke("laptop"),
}
OF_HANDLE: Final[dict[str, Ask]] = {
    "refresh": lambda c: handle(c).refresh(),
    "cancel": lambda c: handle(c).cancel(),
    "follow": lambda c: handle(c).follow(),
    "wait": lambda c: handle(c).wait(timeout_s=20),
    "watch": lambda c: handle(c).watch(),
    "log": lambda c: handle(c).log(),
    "pause": lambda c: handle(c).pause(),
    "suspend": lambda c: handle(c).suspend(),
    "resume": lambda c: handle(c).resume(),
    "nice": lambda c: handle(c).nice(60),
    "threads": lambda c: handle(c).threads(),
    "why": lambda c: handle(c).why(),
    "history": lambda c: handle(c).history(),
}
OF_GENERATION: Final[dict[str, Ask]] = {
    "text": lambda c: c.generate("m", messages=[], logprobs=1).text(),
}
NOUNS: Final = (
    (Client, OF_CLIENT),
    (Bus, OF_BUS),
    (Audit, OF_AUDIT),
    (UserTokens, OF_TOKENS),
    (TaskHandle, OF_HANDLE),
    (Generation, OF_GENERATION),
    (Live, {}),
)
# They ask nothing, or are the two of which all others are made.
SILENT: Final = frozenset({"close", "wait_before_retry", "stream", "so_far", "finish", "usage"})


def handle(client: Any) -> Any:
    made = TaskHandle if isinstance(client, Client) else AsyncTaskHandle
    return made(client, TASK)


class Broken:
    """Answers everything with the same bytes, and closes."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            with one, one.makefile("rb") as request, suppress(OSError):
                one.settimeout(10)
                size = 0
                while (line := request.readline().strip().lower()) != b"":
                    if line.startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                request.read(size)
                one.sendall(self.answer)


@pytest.fixture
def broken() -> Iterator[Broken]:
    with Broken() as server:
        yield server


def test_all_methods_are_walked() -> None:
    for type_, asks in NOUNS:
        public = {
            name
            for name, member in inspect.getmembers(type_)
            if not name.startswith("_") and callable(member)
        }
        assert public - SILENT == set(asks), type_.__name__


def _asked() -> list[tuple[str, Ask]]:
    return [(f"{t.__name__}.{name}", ask) for t, asks in NOUNS for name, ask in asks.items()]


@pytest.mark.parametrize("what", ANSWERS)
def test_no_error_of_others_comes_out_of_a_client(broken: Broken, what: str) -> None:
    broken.answer = ANSWERS[what]
    others = []
    with connect(broken.url, token="x", retry_s=0) as client:
        for name, ask in _asked():
            try:
                found = ask(client)
                if isinstance(found, Iterator):
                    for _ in found:
                        pass
            except Exception as error:  # noqa: BLE001 - all of them are what is looked for
                if not isinstance(error, ZenosError) or not error.message.startswith("cannot "):
                    others.append((name, repr(error)))
    assert others == []


@pytest.mark.parametrize("what", ANSWERS)
async def test_no_error_of_others_comes_out_of_an_async_client(broken: Broken, what: str) -> None:
    broken.answer = ANSWERS[what]
    others = []
    async with connect_async(broken.url, token="x", retry_s=0) as client:
        for name, ask in _asked():
            try:
                found = ask(client)
                if hasattr(found, "__aiter__"):
                    async for _ in found:
                        pass
                else:
                    await found
            except Exception as error:  # noqa: BLE001 - all of them are what is looked for
                if not isinstance(error, ZenosError) or not error.message.startswith("cannot "):
                    others.append((name, repr(error)))
    assert others == []


async def test_a_closed_client_says_so(broken: Broken) -> None:
    with connect(broken.url, token="x", retry_s=0) as client:
        pass
    for _, ask in _asked():
        with pytest.raises(InvalidError, match="this client was closed"):
            for _ in ask(client):
                pass
    async with connect_async(broken.url, token="x", retry_s=0) as far:
        pass
    with pytest.raises(InvalidError, match="this client was closed"):
        await far.status()


def test_what_is_no_stream_of_events_is_not_listened_to(broken: Broken) -> None:
    """It would end, be asked for again, and so on for ever."""
    broken.answer = ANSWERS["a web page"]
    with connect(broken.url, token="x") as client:
        with pytest.raises(UnavailableError, match="'text/html', was asked for; is it zenos"):
            client.events()
        with pytest.raises(UnavailableError, match="is it zenos"):
            client.bus.tail("jobs")


def test_a_body_that_is_no_base64_is_told() -> None:
    from zenos.client import MessageInfo

    raw = {"number": 1, "topic": "t", "id": "1", "sender": "", "priority": 50, "sent": 1.0}
    message = msgspec.convert({**raw, "body_base64": "a"}, MessageInfo)
    with pytest.raises(UnavailableError, match="no base64"):
        _ = message.content
