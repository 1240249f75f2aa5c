"""Whatever a program gives the client, it hears an error of zenos' own, in words."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from tests.cli.test_broken_answers import OF_CLIENT, Ask
from zenos.client import AsyncClient, Client
from zenos.client.address import Address
from zenos.client.build import TaskOptions
from zenos.core.errors import InvalidError, ZenosError
from zenos.core.specs import ProgramSpec

ADDRESS: Final = Address(url="http://127.0.0.1:9", token="x")
ODD: Final[tuple[Any, ...]] = (
    None,
    5,
    -1,
    1.5,
    "",
    "\ud800",
    "x\0",
    float("nan"),
    float("inf"),
    10**400,
    b"x",
    object(),
    [],
    [5],
    ["\ud800"],
    {"a": "\ud800"},
    {"\ud800": 1},
    {5: 5},
    True,
)


def refuses(request: httpx.Request) -> httpx.Response:
    """What the daemon answers, whatever comes to it."""
    error = {"message": "cannot do that", "type": "x", "code": "invalid", "param": None}
    return httpx.Response(400, json={"error": error})


class Recorded:
    """Notes what a method is called with."""

    def __init__(self) -> None:
        self.name = ""
        self.args: tuple[Any, ...] = ()
        self.named: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        def note(*args: Any, **named: Any) -> None:
            self.name, self.args, self.named = name, args, named

        return note


def odd_calls(ask: Ask) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """A method, and its arguments with one of them replaced; of options, one more."""
    known = Recorded()
    ask(known)
    parameters = inspect.signature(getattr(Client, known.name)).parameters.values()
    options = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    if known.name == "plan":
        options.append("ahead")
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        options += ["cpu", "memory", "priority", "time", "after", "at", "labels", "temperature"]
    for value in ODD:
        for place in range(len(known.args)):
            args = (*known.args[:place], value, *known.args[place + 1 :])
            yield known.name, args, known.named
        for name in {*known.named, *options}:
            yield known.name, known.args, {**known.named, name: value}


def others(name: str, error: Exception) -> list[str]:
    """An error that is none of zenos' own, or says nothing."""
    fine = isinstance(error, ZenosError) and error.message.startswith("cannot ")
    return [] if fine else [f"{name}: {error!r}"]


@pytest.mark.parametrize("name", OF_CLIENT)
def test_odd_arguments_are_refused_in_words(name: str) -> None:
    http = httpx.Client(base_url=ADDRESS.url, transport=httpx.MockTransport(refuses))
    found: list[str] = []
    with Client(ADDRESS, http=http, retry_s=0.0) as client:
        for method, args, named in odd_calls(OF_CLIENT[name]):
            said = f"{method}{args}{named}"[:200]
            try:
                list(getattr(client, method)(*args, **named))  # a stream asks when it is read
                found.append(f"{said}: nothing")
            except Exception as error:  # noqa: BLE001 - all of them are what is looked for
                found += others(said, error)
    assert found == []


@pytest.mark.parametrize("name", OF_CLIENT)
async def test_and_so_they_are_where_they_are_awaited(name: str) -> None:
    http = httpx.AsyncClient(base_url=ADDRESS.url, transport=httpx.MockTransport(refuses))
    found: list[str] = []
    async with AsyncClient(ADDRESS, http=http, retry_s=0.0) as client:
        for method, args, named in odd_calls(OF_CLIENT[name]):
            said = f"{method}{args}{named}"[:200]
            try:
                made = getattr(client, method)(*args, **named)
                if inspect.isawaitable(made):
                    made = await made
                async for _ in made:
                    pass
                found.append(f"{said}: nothing")
            except Exception as error:  # noqa: BLE001
                found += others(said, error)
    assert found == []


def test_the_words_say_what_to_give() -> None:
    http = httpx.Client(base_url=ADDRESS.url, transport=httpx.MockTransport(refuses))
    task = TaskOptions(cpu=1).task(ProgramSpec(argv=["x"]))
    with Client(ADDRESS, http=http) as client:
        for said, ask in (
            ("cannot use NoneType as model name: give a text", lambda: client.model(None)),  # type: ignore[arg-type]
            ("cannot use int as task: give a text", lambda: client.task(5)),  # type: ignore[arg-type]
            ("cannot train int: give a TrainSpec", lambda: client.train(5)),  # type: ignore[arg-type]
            ("cannot generate from int: give a text", lambda: client.generate("tiny", 5)),  # type: ignore[arg-type]
            ("cannot generate from bytes: give a text", lambda: client.generate("tiny", b"x")),
            ("cannot submit task 1: give it a name", lambda: client.submit_batch([task])),
            ("not UTF-8", lambda: client.submit(["\ud800"])),
            ("argv", lambda: client.submit(None)),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidError, match=said):
                ask()
