"""The typed client against the real API."""

from __future__ import annotations

import asyncio
import functools
import io
import os
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import zenos as package
from tests.api.conftest import TOKEN
from tests.cli.conftest import LIMIT_S, Daemon, until
from tests.cli.proxy import CuttingProxy
from zenos.client import Client, TaskProgress, connect, connect_async, display, transport
from zenos.client.address import Address
from zenos.core.errors import (
    BusyError,
    ConflictError,
    DeadlineError,
    InvalidError,
    NoDaemonError,
    NotFoundError,
    StorageError,
    UnauthorizedError,
    UnavailableError,
    UnfittableError,
)
from zenos.core.home import Home
from zenos.core.specs import ProgramSpec, TrainSpec
from zenos.core.task import Outcome, State, TaskEvent
from zenos.core.wire import Progress
from zenos.core.wording import FieldError

HALF = Progress(
    stage="training",
    done=50,
    total=100,
    loss=2.5,
    learning_rate=2.5e-4,
    tokens_per_s=1234,
    left_s=65,
)


def test_connect_is_found_in_the_package(daemon: Daemon) -> None:
    with package.connect() as made:
        assert made.status().nodes[0].node.name == "local"
    with pytest.raises(AttributeError):
        _ = package.nothing  # type: ignore[attr-defined]


def test_a_program_is_submitted_with_what_was_asked(client: Client, tmp_path: Path) -> None:
    handle = client.submit(
        ["echo", "hi"],
        name="greet",
        cpu=0.5,
        memory="1GiB",
        priority="high",
        time="2m",
        env={"A": "b"},
        cwd=tmp_path,
        retries=2,
    )
    task = client.task(handle.id).task
    assert task.spec.work == ProgramSpec(argv=["echo", "hi"], env={"A": "b"}, cwd=str(tmp_path))
    assert (task.spec.resources.cpu, task.spec.resources.memory) == (500, 2**30)
    assert (task.spec.priority, task.spec.expected_s, task.spec.retries) == (75, 120.0, 2)
    assert client.task("greet").id == handle.id
    assert [view.task.id for view in client.tasks(kind="run")] == [handle.id]


def test_a_training_run_from_keywords(client: Client) -> None:
    handle = client.train(model="m", arch="llama-nano", data="corpus/*.txt", steps=5, cpu=2)
    work = handle.task.spec.work
    assert isinstance(work, TrainSpec)
    assert work.data.paths == [str(Path.cwd() / "corpus/*.txt")]
    assert (work.steps, handle.task.spec.resources.cpu) == (5, 2000)


def test_a_typo_names_the_nearest_field(client: Client) -> None:
    with pytest.raises(InvalidError, match=r"cannot use the field 'learning_rat'.*'learning_rate'"):
        client.train(model="m", arch="a", data="x", learning_rat=1)
    with pytest.raises(InvalidError, match=r"'data.txt_column'.*'text_column'"):
        client.train(model="m", arch="a", data={"paths": ["x"], "txt_column": "t"})
    with pytest.raises(InvalidError, match="cannot do without the field 'model'"):
        client.train(arch="a", data="x")
    with pytest.raises(InvalidError, match=r"cannot use the field 'memry'.*'memory'"):
        client.submit(["ls"], memry="1GiB")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({}, "model"),
        ({"model": "m", "arch": "a", "data": __file__, "steps": 0}, "steps"),
        ({"model": "a/b", "arch": "a", "data": __file__}, "model"),
        ({"model": "m", "arch": "a", "data": {"paths": []}}, "data.paths"),
        ({"model": "m", "arch": "a", "data": __file__, "cpu": float("nan")}, "cpu"),
        ({"model": "m", "arch": "a", "data": __file__, "memory": "lots"}, "memory"),
        ({"model": "m", "arch": "a", "data": __file__, "memory": 1}, "memory"),
        ({"model": "m", "arch": "a", "data": __file__, "time_limit": "soon"}, "time_limit"),
        ({"model": "m", "arch": "a", "data": __file__, "by": "soon"}, "by"),
        ({"model": "m", "arch": "a", "data": __file__, "priority": "urgent"}, "priority"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(
    client: Client, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(FieldError) as caught:
        client.train(**options)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cpu": float("nan")}, InvalidError),
        ({"cpu": -1}, InvalidError),
        ({"memory": "lots"}, InvalidError),
        ({"time": "soon"}, InvalidError),
        ({"priority": "urgent"}, InvalidError),
        ({"priority": 101}, InvalidError),
        ({"gpu": 64}, UnfittableError),
    ],
)
def test_bad_options_are_told(
    client: Client, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"^cannot "):
        client.submit(["ls"], **options)
    assert client.tasks() == []


def test_data_of_no_use_is_refused_with_what_may_be_given(client: Client) -> None:
    for given, word in ((5, "a whole number"), (None, "nothing"), (True, "true or false")):
        with pytest.raises(InvalidError) as caught:
            client.train(model="m", arch="llama-nano", data=given)
        says = "give a path, a list of paths, or a mapping"
        assert caught.value.message == f"cannot use data: {says}, not {word}"


def test_a_setting_that_json_has_no_number_for_is_refused(daemon: Daemon, client: Client) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(InvalidError, match="cannot use temperature"):
            client.generate("tiny", "hello", temperature=value).text()


SEND = "cannot send this request: it is"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "cannot use hidden_size nan: it must be a finite number"),
        ({"inner": [1.0, float("-inf")]}, "cannot use inner -inf: it must be a finite number"),
        (2**64, f"cannot use hidden_size {2**64}: it must be a number of 64 bits"),
        (-(10**40), "cannot use hidden_size that: it must be a number of 64 bits"),
        (functools.reduce(lambda inner, _: [inner], range(5000), 0), f"{SEND} nested too deeply"),
    ],
)
def test_a_number_that_cannot_be_sent_is_refused_however_deep(
    daemon: Daemon, client: Client, value: object, says: str
) -> None:
    settings = {"hidden_size": value}
    submits = [
        lambda: client.create("m", "llama-nano", settings),
        lambda: client.train(model="m", arch="llama-nano", data="/x", settings=settings),
    ]
    for submit in submits:
        with pytest.raises(InvalidError) as caught:
            submit()
        assert caught.value.message == says
    assert not daemon.double.tasks()


def test_a_text_that_is_no_unicode_is_named(daemon: Daemon, client: Client) -> None:
    bad = os.fsdecode(b"caf\xe9")
    for submit, name in (
        (lambda: client.submit(["ls", bad]), "argv"),
        (lambda: client.submit(["ls"], env={"PLACE": bad}), "PLACE"),
        (lambda: client.create("m", "llama-nano", {bad: 1}), "settings"),
    ):
        with pytest.raises(InvalidError) as caught:
            submit()
        says = f"cannot use {name} 'caf\\udce9': it has bytes that are not UTF-8; write it in"
        assert caught.value.message.startswith(says)
    assert not daemon.double.tasks()


def test_wait_and_follow_see_every_state(daemon: Daemon, client: Client) -> None:
    handle = client.submit(["work"])
    seen: list[tuple[str, float | None]] = []

    def drive() -> None:
        until(lambda: daemon.state(handle.id) == "running")
        daemon.report(handle.id, HALF)
        until(lambda: any(done for _, done in seen))
        daemon.end(handle.id)

    driver = threading.Thread(target=drive)
    driver.start()
    seen.extend(
        (str(view.task.state), view.progress and view.progress.done)
        for view in client.task(handle.id).follow()
    )
    driver.join()
    assert ("running", 50) in seen
    assert seen[-1][0] == "succeeded"
    assert handle.wait().state is State.SUCCEEDED


def test_wait_gives_up_at_its_deadline(client: Client) -> None:
    handle = client.submit(["work"])
    with pytest.raises(DeadlineError):
        handle.wait(timeout_s=0.2)


def test_a_failure_is_a_state_and_no_exception(daemon: Daemon, client: Client) -> None:
    handle = client.submit(["work"])
    until(lambda: daemon.state(handle.id) == "running")
    daemon.end(handle.id, Outcome(exit_code=3))
    assert handle.wait().state is State.FAILED
    assert "exit code 3" in display.summary(handle.task)


def test_cancel_ends_a_task(client: Client) -> None:
    handle = client.submit(["work"])
    handle.cancel()
    assert handle.wait(timeout_s=20).state is State.CANCELLED


def test_events_after_a_number_come_once_and_in_order(client: Client) -> None:
    first = client.submit(["a"])
    second = client.submit(["b"])
    first.cancel()
    found: list[TaskEvent] = []
    for event in client.events(after=0):
        assert isinstance(event, TaskEvent | TaskProgress)
        if isinstance(event, TaskEvent):
            found.append(event)
            if event.task == first.id and event.state is State.CANCELLED:
                break
    assert [e.seq for e in found] == sorted({e.seq for e in found})
    assert {e.task for e in found} == {first.id, second.id}
    again = next(e for e in client.events(after=found[-2].seq) if isinstance(e, TaskEvent))
    assert again == found[-1]


def test_events_go_on_over_a_lost_connection(daemon: Daemon, client: Client) -> None:
    handle = client.submit(["a"])
    until(lambda: daemon.state(handle.id) == "running")
    with CuttingProxy(daemon.url) as proxy, connect(proxy.url) as far:
        found: list[str] = []
        for event in far.events(handle.id, after=0):
            if not isinstance(event, TaskEvent):
                continue
            found.append(event.type)
            if event.state is State.RUNNING:
                proxy.cut_all()
                daemon.end(handle.id)
            if event.state is State.SUCCEEDED:
                break
    assert found == [event.type for event in daemon.history(handle.id)]


def test_what_happens_while_a_connection_is_lost_comes_also_before_there_was_an_event(
    daemon: Daemon, client: Client
) -> None:
    handle = client.submit(["a"])
    until(lambda: daemon.state(handle.id) == "running")
    with (
        CuttingProxy(daemon.url) as proxy,
        connect(proxy.url) as far,
        far.events(handle.id, deadline=time.monotonic() + LIMIT_S) as events,
    ):
        proxy.cut_all()
        daemon.end(handle.id)
        until(lambda: daemon.state(handle.id) == "succeeded")
        first = next(event for event in events if isinstance(event, TaskEvent))
        assert first.state is State.SUCCEEDED


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_submission_whose_connection_is_lost_is_one_task(daemon: Daemon, cut: str) -> None:
    with CuttingProxy(daemon.url, cut, cut) as proxy, connect(proxy.url) as far:
        handle = far.submit(["once"])
        assert proxy.connections >= 3
    assert list(daemon.double.view.tasks) == [handle.id]


def test_what_cannot_be_repeated_is_told(daemon: Daemon) -> None:
    with (
        CuttingProxy(daemon.url, "after") as proxy,
        connect(proxy.url) as far,
        pytest.raises(UnavailableError, match="cannot say whether it was done"),
    ):
        far.shut_down("leave")
    assert daemon.double.stopped == ["leave"]


def test_an_export_whose_connection_is_lost_succeeds(daemon: Daemon, tmp_path: Path) -> None:
    with CuttingProxy(daemon.url, "after") as proxy, connect(proxy.url) as far:
        assert far.export_model("tiny", tmp_path / "copy") == tmp_path / "copy"
        assert proxy.connections >= 2
    assert (tmp_path / "copy" / "model.safetensors").is_file()


def test_a_copy_whose_connection_is_lost_is_made_once(daemon: Daemon) -> None:
    with CuttingProxy(daemon.url, "after") as proxy, connect(proxy.url) as far:
        made = far.copy("tiny", "fresh")
        assert proxy.connections >= 2
        assert far.model("fresh").version == made.version == 1


def test_a_deletion_sent_again_is_no_error(daemon: Daemon) -> None:
    with CuttingProxy(daemon.url, "after") as proxy, connect(proxy.url) as far:
        assert far.remove("tiny").removed == "tiny"


def test_a_daemon_that_moved_is_found_again(daemon: Daemon, client: Client) -> None:
    with CuttingProxy(daemon.url) as proxy:
        daemon.publish(proxy.url)
        with connect() as made:
            handle = made.submit(["work"])
            proxy.cuts = ["before"]
            proxy.cut_all()
            daemon.publish(daemon.url)
            assert made.task(handle.id).id == handle.id
            assert made.address.url == daemon.url


def test_the_log_is_followed_to_its_end_and_no_character_is_cut(
    daemon: Daemon, client: Client
) -> None:
    handle = client.submit(["work"])
    until(lambda: daemon.state(handle.id) == "running")
    text = "grüße 世界\n"
    log = daemon.double.log_path(handle.id)
    assert log is not None
    raw = text.encode()
    log.write_bytes(raw[:3])
    pieces: list[str] = []

    def drive() -> None:
        until(lambda: pieces)
        log.write_bytes(raw + b"\xff")
        daemon.end(handle.id)

    driver = threading.Thread(target=drive)
    driver.start()
    pieces.extend(handle.log(follow=True))
    driver.join()
    assert "".join(pieces) == text + "\ufffd"
    assert "".join(handle.log(offset=len(raw))) == "\ufffd"
    assert "" not in pieces
    log.write_bytes(raw)
    assert list(handle.log()) == [text]


def test_generation_streams_and_counts(daemon: Daemon, client: Client) -> None:
    answer = client.generate("tiny", "Say", max_tokens=3, temperature=0, logprobs=1)
    chunks = list(answer)
    assert "".join(c.text for c in chunks) == "Hello, wörld" == answer.text()
    assert answer.finish() == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)
    assert [t.token for c in chunks for t in c.logprobs] == ["Hello", ",", " wörld"]
    _, request = daemon.double.asked[-1]
    assert (request.prompt, request.sampling.max_tokens, request.sampling.temperature) == (
        "Say",
        3,
        0,
    )


def test_chat_streams_with_its_probabilities(daemon: Daemon, client: Client) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer = client.generate("tiny", messages=messages, n=2, logprobs=1, priority=80)
    tokens = [t for c in answer for t in c.logprobs]
    assert answer.text(1) == "Hello, wörld"
    assert tokens[0].top == {"Hello": -0.5}
    assert daemon.double.asked[-1][1].messages == messages
    assert daemon.double.asked[-1][1].priority == 80


def test_an_answer_that_is_closed_frees_its_slot(daemon: Daemon, client: Client) -> None:
    daemon.do(lambda: setattr(daemon.double, "gate", asyncio.Event()))
    answer = client.generate("tiny", "Say")
    assert next(answer).text == "Hello"
    until(lambda: daemon.double.open == 1)
    answer.close()
    until(lambda: daemon.double.open == 0)


def test_errors_of_generation_keep_their_kind(daemon: Daemon, client: Client) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.generate("nobody", "Say").text()
    assert missing.value.param == "model"
    daemon.double.failure = BusyError("cannot take more", retry_after_s=7)
    with pytest.raises(BusyError) as caught:
        client.generate("tiny", "Say").text()
    assert caught.value.retry_after_s == 7
    daemon.double.fail_after = 1
    with pytest.raises(BusyError):
        client.generate("tiny", "Say").text()
    daemon.double.failure = InvalidError("cannot use these tokens")
    with pytest.raises(InvalidError) as within:  # told in the stream
        client.generate("tiny", "Say").text()
    assert within.value.param == "prompt"
    with pytest.raises(InvalidError, match="either 'prompt' or 'messages'"):
        client.generate("tiny")


def test_an_answer_that_is_cut_is_an_error(daemon: Daemon) -> None:
    with CuttingProxy(daemon.url, "middle") as proxy, connect(proxy.url) as far:
        daemon.do(lambda: setattr(daemon.double, "gate", asyncio.Event()))
        with pytest.raises(UnavailableError, match="was cut"):
            far.generate("tiny", "Say").text()


def test_models(client: Client, tmp_path: Path) -> None:
    assert {m.ref for m in client.models()} == {"tiny:1", "other:1"}
    assert client.copy("tiny", "third").ref == "third:1"
    assert client.alias("tiny", "prod", 1).ref == "tiny:1"
    assert client.model("tiny:prod").version == 1
    assert client.remove("third:1").removed == "third:1"
    assert "third:1" not in {m.ref for m in client.models()}
    with pytest.raises(InvalidError, match="cannot import"):
        client.import_model(tmp_path, "mine")
    assert "curve" not in client.model("tiny")._repr_html_()
    for ref in ("nobody", "tiny:9"):
        with pytest.raises(NotFoundError):
            client.model(ref)
    for ref in ("..", "", "a/b", "a\0b", "x" * 10_000, "😀"):
        with pytest.raises(InvalidError):
            client.model(ref)


def test_deployments(client: Client) -> None:
    made = client.serve("tiny", min_replicas=1, priority="low", cpu=0.5)
    assert (made.name, made.spec.priority, made.spec.cpu) == ("tiny", 25, 0.5)
    assert [d.name for d in client.deployments()] == ["tiny"]
    client.stop("tiny")
    with pytest.raises(NotFoundError):
        client.serve("nobody")


def test_the_token_is_asked_for_and_must_be_right(
    daemon: Daemon, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        connect(daemon.url, token="wrong-but-long-enough") as made,
        pytest.raises(UnauthorizedError),
    ):
        made.status()
    home.token.unlink()
    with pytest.raises(UnauthorizedError, match="ZENOS_TOKEN"):
        connect()
    monkeypatch.setenv("ZENOS_TOKEN", "from-the-environment")
    assert connect().address.token == "from-the-environment"


def test_a_wrong_token_is_told_by_where_it_came_from(
    daemon: Daemon, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def says(**where: str) -> str:
        with connect(**where) as made, pytest.raises(UnauthorizedError) as caught:  # type: ignore[arg-type]
            made.status()
        with connect(**where) as made, pytest.raises(UnauthorizedError) as of_stream:  # type: ignore[arg-type]
            made.events()
        assert str(of_stream.value) == str(caught.value)
        assert "Bearer" not in str(caught.value)
        return str(caught.value)

    assert f"the token given is not that daemon's, which stands in {home.token}" in says(token="x")
    monkeypatch.setenv("ZENOS_TOKEN", "wrong")
    assert f"unset it, or set it to what stands in {home.token}" in says()
    far = says(host=daemon.url)
    assert "ZENOS_TOKEN is set to another token than that daemon's; set it to" in far
    assert str(home.root) not in far  # whose home that daemon has isn't known
    monkeypatch.delenv("ZENOS_TOKEN")
    home.token.write_text("wrong")
    assert f"the token in {home.token} has changed since the daemon was started" in says()
    assert f"the token in {home.token} is not that daemon's; set ZENOS_TOKEN" in says(
        host=daemon.url
    )


def test_paths_in_the_home_are_said_whole_to_who_knows_it(daemon: Daemon, home: Home) -> None:
    def full() -> None:
        daemon.double.inbox.storage_error = StorageError(f"cannot write {home.root}/zenos.db: full")

    daemon.do(full)
    with connect(retry_s=0) as made, pytest.raises(UnavailableError) as caught:
        made.submit(["x"])
    assert f"cannot write {home.root}/zenos.db: full" in str(caught.value)
    with (
        connect(daemon.url, token=TOKEN, retry_s=0) as far,
        pytest.raises(UnavailableError) as told,
    ):
        far.submit(["x"])
    assert "cannot write $ZENOS_HOME/zenos.db: full" in str(told.value)


def test_a_purge_whose_answer_is_lost_is_sent_again_and_counts_once(daemon: Daemon) -> None:
    with connect() as near:
        near.bus.send("jobs", "x")
    with CuttingProxy(daemon.url, "after") as proxy, connect(proxy.url) as far:
        assert far.bus.purge("jobs") == 1


def test_no_daemon_says_how_to_start_one(home: Home) -> None:
    with pytest.raises(NoDaemonError, match="zenos up"):
        connect()
    # A file that was left behind: its process is gone, or is another one of the same number.
    home.token.write_text("t" * 20)
    home.daemon.write_text('{"pid": 1, "start_time": 1, "url": "http://127.0.0.1:1"}')
    with pytest.raises(NoDaemonError, match="zenos up"):
        connect()
    with connect("127.0.0.1:1") as made, pytest.raises(NoDaemonError, match="zenos up"):
        made.status()


UNSPEAKABLE = ["a..b", ".", "é..x", "x" * 300, "①", "\ud800", "a\0b", "http://xn--a", "xn--zzz99"]


@pytest.mark.parametrize(
    "host", ["ftp://x", "http://", "u:p@h", "h:99999", "[::1", "http://u@h", *UNSPEAKABLE]
)
def test_impossible_addresses_are_told(home: Home, host: str) -> None:
    with pytest.raises(InvalidError, match="cannot use the address"):
        connect(host, token="t")


def test_authorities_are_read_where_there_may_be_tls_alone() -> None:
    def verify(url: str) -> object:
        return transport.options(Address(url=url, token=TOKEN))["verify"]

    assert verify("https://127.0.0.1:8642") is True
    assert verify("http://10.0.0.1:8642") is True  # a proxy may stand before it
    nobody = verify("http://127.0.0.1:8642")
    assert isinstance(nobody, ssl.SSLContext)
    assert nobody.verify_mode is ssl.CERT_REQUIRED
    assert nobody.get_ca_certs() == []


async def test_the_async_client_does_the_same(daemon: Daemon) -> None:
    async with connect_async() as client:
        handle = await client.submit(["work"], name="later")
        views = []
        async with asyncio.timeout(20):
            async for view in handle.follow():
                views.append(view)
                if view.task.state is State.RUNNING and view.progress is None:
                    await asyncio.to_thread(daemon.report, handle.id, HALF)
                if view.progress is not None and not view.task.is_ended:
                    await asyncio.to_thread(daemon.end, handle.id)
        assert views[-1].task.state is State.SUCCEEDED
        assert (await handle.wait()).id == handle.id
        assert [v.task.name for v in await client.tasks()] == ["later"]
        answer = client.generate("tiny", "Say")
        assert [c.text async for c in answer][:3] == ["Hello", ",", " wörld"]
        assert await answer.text() == "Hello, wörld"
        assert {m.name for m in await client.models()} == {"tiny", "other"}
        assert "".join([t async for t in (await client.task("later")).log()]) == ""
        with pytest.raises(NotFoundError):
            await client.task("nobody")


def test_events_are_heard_from_the_call_on(client: Client) -> None:
    """Not only from the first that is asked for."""
    with client.events(deadline=time.monotonic() + LIMIT_S) as events:
        handle = client.submit(["work"])
        first = next(events)
        assert isinstance(first, TaskEvent)
        assert (first.task, first.type) == (handle.id, "submitted")


def test_events_of_nobody_are_refused_by_the_call(client: Client) -> None:
    with pytest.raises(NotFoundError):
        client.events("nobody")


@pytest.mark.parametrize("awaited", [False, True])
async def test_the_async_client_hears_events_from_there_on(daemon: Daemon, awaited: bool) -> None:
    client = await connect_async()
    try:
        events = client.events()
        async with await events if awaited else events as heard:
            handle = await client.submit(["work"])
            first = await asyncio.wait_for(anext(heard), LIMIT_S)
        assert isinstance(first, TaskEvent)
        assert (first.task, first.type) == (handle.id, "submitted")
    finally:
        await client.aclose()


async def test_an_async_client_that_is_awaited_is_the_client(daemon: Daemon) -> None:
    async with await connect_async() as client:
        assert (await client.status()).pid
    made = connect_async()
    assert await made is made
    await made.aclose()


def test_a_stream_that_is_cut_at_its_beginning_is_an_outage_still() -> None:
    """It would else be asked for again twenty times a second, for ever."""
    outage = transport.Outage(Address(url="http://127.0.0.1:1", token=TOKEN), retry_s=0)
    outage.opened()
    assert outage.pause_s(None) == transport.PAUSE_S_MIN
    outage.opened()
    with pytest.raises(NoDaemonError):
        outage.pause_s(None)


async def test_the_async_client_repeats_safely(daemon: Daemon) -> None:
    with CuttingProxy(daemon.url, "after") as proxy:
        async with connect_async(proxy.url) as client:
            handle = await client.submit(["once"])
    assert list(daemon.double.view.tasks) == [handle.id]


def test_progress_is_drawn_live_in_a_terminal(daemon: Daemon, client: Client) -> None:
    handle = client.submit(["work"], name="training-run")
    until(lambda: daemon.state(handle.id) == "running")
    daemon.report(handle.id, HALF)
    view = client.look(handle.id)
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with display.watching(view, console) as show:
        show(view)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("training-run", "50/100", "2.5000", "2.50e-04", "1,234", "1:05"):
        assert part in drawn


@pytest.mark.parametrize(("done", "filled"), [(0, 0), (50, 15), (100, 30)])
def test_the_bar_is_as_full_as_the_stage_is_done(
    daemon: Daemon, client: Client, done: int, filled: int
) -> None:
    handle = client.submit(["work"])
    until(lambda: daemon.state(handle.id) == "running")
    daemon.report(handle.id, Progress(stage="training", done=done, total=100))
    # Without colours what is still to be done is left blank.
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(display.render(client.look(handle.id)))
    assert console.file.getvalue().count("━") == filled  # type: ignore[attr-defined]


def test_progress_is_lines_where_there_is_no_terminal(
    daemon: Daemon, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = client.submit(["work"], name="job")
    until(lambda: daemon.state(handle.id) == "running")
    daemon.report(handle.id, HALF)
    driver = threading.Thread(target=lambda: daemon.end(handle.id))
    view = client.look(handle.id)
    console = Console(file=io.StringIO(), width=160)
    with display.watching(view, console) as show:
        show(view)
        show(view)
    driver.start()
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1
    assert "training 50/100, loss 2.5000, lr 2.50e-04, 1,234 tok/s, 1:05 left" in lines[0]
    handle.watch()
    driver.join()
    assert "succeeded" in capsys.readouterr().err


def test_html_for_notebooks_is_escaped(daemon: Daemon, client: Client) -> None:
    handle = client.submit(["work"], name="job")
    until(lambda: daemon.state(handle.id) == "running")
    note = "<script>alert(1)</script>"
    daemon.report(handle.id, Progress(stage="training", done=1, total=4, note=note))
    handle.refresh()
    html = handle._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert 'value="0.2500"' in html


def test_the_same_key_is_the_same_task(client: Client) -> None:
    first = client.submit(["work"], key="mine")
    assert client.submit(["work"], key="mine").id == first.id
    with pytest.raises(ConflictError):
        client.submit(["other"], key="mine")
    for key in ("", " ", "mine ", "new\nline", "ü", "x" * 129):
        with pytest.raises(InvalidError, match="cannot use this key"):
            client.submit(["work"], key=key)
