"""What a program gives `zenos.call` and `zenos.map` is looked at before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

import zenos
from tests.calls import work
from zenos.calls.finding import paths
from zenos.core.errors import InvalidError, NoDaemonError
from zenos.threads.mapping import Mapped

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
ODD: Final[dict[str, tuple[Any, ...]]] = {
    "cpu": (NAN, INF, -1, HUGE, "x", None, True, [], object(), "\ud800"),
    "gpu": (NAN, INF, -1, HUGE, "x", None, True, [], object()),
    "memory": (NAN, INF, -1, HUGE, "x", 1.5, True, [], object(), "\ud800"),
    "lanes": (NAN, 0, -1, HUGE, "2", 1.5, [], object()),
    "priority": (NAN, -1, HUGE, "x", 1.5, [], object()),
    "keep_alive_s": (NAN, INF, -1, HUGE, "x", None, [], object()),
    "retries": (NAN, -1, HUGE, "x", 1.5, True, [], object()),
}
OF_CALL: Final[dict[str, tuple[Any, ...]]] = {
    "timeout_s": (NAN, INF, 0, -1, HUGE, "x", True, [], object()),
    "kwargs": (5, "x", [1]),
    "durable": ("no", "", 0, 1, None, []),
}
OF_MAP: Final[dict[str, tuple[Any, ...]]] = {
    "chunk": (NAN, 0, -1, "x", 1.5, [], object()),
    "window": (NAN, 0, -1, "x", 1.5, [], object()),
}


@pytest.fixture(autouse=True)
def no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home on which nothing runs."""
    monkeypatch.setenv("ZENOS_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", [*ODD, *OF_CALL])
def test_a_call_refuses_what_no_call_can_be(name: str) -> None:
    for value in {**ODD, **OF_CALL}[name]:
        with pytest.raises(InvalidError, match=f"^cannot .*{name.partition('_')[0]}"):
            zenos.call(work.increment, 1, idempotent=name == "retries", **{name: value})


@pytest.mark.parametrize("name", ODD)
def test_a_map_refuses_what_no_map_can_be(name: str) -> None:
    for value in ODD[name]:
        with pytest.raises(InvalidError, match=f"^cannot .*{name.partition('_')[0]}"):
            zenos.map(work.increment, [1], idempotent=name == "retries", **{name: value})


def test_whether_it_may_run_twice_is_yes_or_no() -> None:
    for value in ("no", "", 0, 1, None, []):
        odd: Any = value
        with pytest.raises(InvalidError, match=r"^cannot use idempotent=.*: give True or False"):
            zenos.call(work.increment, 1, idempotent=odd)
        with pytest.raises(InvalidError, match=r"^cannot use idempotent=.*: give True or False"):
            zenos.map(work.increment, [1], idempotent=odd)


def test_what_is_no_function_and_what_are_no_items() -> None:
    not_callable: Any = 5
    with pytest.raises(InvalidError, match="cannot call int: give a function"):
        zenos.call(not_callable)
    with pytest.raises(InvalidError, match="cannot call int: give a function"):
        zenos.map(not_callable, [1])


def test_a_folder_that_was_removed_is_no_place_to_call_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.syspath_prepend("")
    gone.rmdir()
    with pytest.raises(InvalidError, match="cannot call from a folder that was removed"):
        zenos.call(work.increment, 1)
    assert paths()[0] == ""  # who called before goes on, and says this to its next host


@pytest.mark.parametrize("cpu", [1, 0.5, "2", "0.5"])
def test_what_can_be_is_looked_for(cpu: float) -> None:
    with pytest.raises(NoDaemonError):
        zenos.call(work.increment, 1, cpu=cpu, memory="1GiB", lanes=2, timeout_s=1)


class Mapping(Mapped[int]):
    """One that maps nothing."""

    def __next__(self) -> int:
        raise StopIteration


@pytest.mark.parametrize("name", OF_MAP)
def test_chunks_and_windows_are_counted_in_whole_numbers(name: str) -> None:
    for value in OF_MAP[name]:
        given = {"chunk": None, "window": None, name: value}
        with pytest.raises(InvalidError, match=f"^cannot use {name}="):
            Mapping([1], progress=None, **given)
    not_iterable: Any = 5
    with pytest.raises(InvalidError, match="cannot map over int"):
        Mapping(not_iterable, None, None, None)
