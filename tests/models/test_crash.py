"""Whatever dies or fills up when: the old state or the new one, whole, and nothing left over."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zenos.core import failpoints
from zenos.core import free as core_free
from zenos.core.errors import StorageError
from zenos.models.registry import Registry
from zenos.runtime.space import is_lacking

from .child import act
from .files import litter, state, write_model

LABELS = ["durable.write", "durable.fsync", "durable.rename"]
# How often each action passes the three labels, at least: else the tests below would test nothing.
PASSES = {
    "publish": (5, 10, 4),
    "import": (5, 10, 4),
    "copy": (2, 5, 2),
    "alias": (1, 2, 1),
    "remove": (1, 3, 1),
    "view": (0, 4, 1),
}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """m:1 (`prod`, opened once), m:2, and n:1 with the files of m:1."""
    root = tmp_path / "prepared"
    registry = Registry(root)
    for number in (1, 2):
        registry.publish("m", write_model(tmp_path / f"m{number}", b"weights %d" % number))
    registry.alias("m", "prod", 1)
    registry.copy("m:1", "n")
    registry.path(registry.resolve("m:1"))
    write_model(tmp_path / "source", b"new weights", {"model_type": "gpt2"})
    return root


def run(root: Path, action: str, plan: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.models.child", action, root, root.parent / "source", *more],
        env={**os.environ, failpoints.VARIABLE: plan},
        check=False,
        capture_output=True,
        text=True,
    )


def copied(prepared: Path, name: str) -> Path:
    """A registry of the same content, to be broken."""
    return Path(shutil.copytree(prepared, prepared.with_name(name), symlinks=True))


@pytest.mark.parametrize(
    ("action", "label", "least"),
    [
        (action, label, least)
        for action, counts in PASSES.items()
        for label, least in zip(LABELS, counts, strict=True)
        if least
    ],
)
def test_a_crash_leaves_the_old_state_or_the_new(
    prepared: Path, action: str, label: str, least: int
) -> None:
    finished = copied(prepared, "finished")
    assert run(finished, action, "").returncode == 0
    expected = [state(Registry(copied(prepared, "old"))), state(Registry(finished))]
    times = 0
    while True:
        times += 1
        root = copied(prepared, f"killed-{times}")
        ended = run(root, action, f"{label}=kill@{times}")
        if ended.returncode != -signal.SIGKILL:
            assert ended.returncode == 0, ended.stderr
            break
        registry = Registry(root)
        found = state(registry)
        assert found in expected, f"{label}@{times}"
        registry.collect_garbage()
        assert litter(root) == [], f"{label}@{times}"
        assert state(registry) == found
        assert registry.collect_garbage() == 0
        # The lock died with its holder, and a number that was begun is at most left out.
        before = {version.ref for version in registry.list()}
        done = act("publish", registry, root.parent / "source")
        assert f"m:{done}" not in before
        registry.resolve(f"m:{done}")
    assert times > least
    assert state(Registry(root)) == expected[1]


@pytest.mark.parametrize("action", PASSES)
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("failure", ["raise", "enospc"])
def test_a_failure_leaves_nothing_behind(
    prepared: Path, action: str, label: str, failure: str
) -> None:
    """Not even until the next collection: on a full disk that may be what is missing."""
    source = prepared.with_name("source")
    finished = copied(prepared, "finished")
    act(action, Registry(finished), source)
    expected = [state(Registry(copied(prepared, "old"))), state(Registry(finished))]
    reason = "No space left" if failure == "enospc" else "failpoint|Input/output"
    for times in range(1, 50):
        root = copied(prepared, f"failed-{times}")
        registry = Registry(root)
        failpoints.arm(f"{label}={failure}@{times}")
        try:
            act(action, registry, source)
        except StorageError as error:
            assert re.match(f"cannot change the registry in .*: {reason}", str(error))  # noqa: PT017
        else:
            break
        finally:
            failpoints.arm("")
        found = state(registry)
        assert found in expected, f"{label}@{times}"
        if action in {"publish", "import", "copy"}:
            assert found == expected[0], f"{label}@{times}"
            assert litter(root) == [], f"{label}@{times}"
        registry.collect_garbage()
        assert litter(root) == [], f"{label}@{times}"
        if found == expected[0]:
            act(action, registry, source)
    assert times > PASSES[action][LABELS.index(label)]


def test_a_full_disk_leaves_the_old_state_and_room(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(small_disk / "models")
    registry.publish("m", write_model(tmp_path / "first", b"x" * 100_000))
    registry.alias("m", "prod", 1)
    before = state(registry)

    def free() -> int:
        return shutil.disk_usage(small_disk).free

    room = free()
    half = tmp_path / "half"
    half.write_bytes(b"z" * 500_000)
    large = write_model(tmp_path / "large", b"y" * 2_000_000)
    attempts: list[Callable[[], Any]] = [
        lambda: registry.publish("m", large),
        lambda: registry.import_directory(tmp_path / "large", "other"),
        # The first file fits, the second does not.
        lambda: registry.publish("m", {**large, "a.txt": half}),
    ]
    # It is seen before, or, where others fill the disk meanwhile, found on the way.
    told = r"cannot store \w+: it takes [12]\.. MiB, and .*KiB are free on the disk of .*make room"
    found = r"cannot change the registry in .*: No space left"
    for attempt, seen in itertools.product(attempts, (True, False)):
        with pytest.MonkeyPatch.context() as patch:
            if not seen:
                patch.setattr(core_free, "free_bytes", lambda path: None)
            with pytest.raises(StorageError, match=told if seen else found) as raised:
                attempt()
        assert is_lacking(raised.value)  # as a training that waits for space asks
        assert state(registry) == before
        assert litter(small_disk / "models") == []
        assert room - free() < 3 * 4096  # what a name remembers
    registry.publish("m", write_model(tmp_path / "fits", b"z" * 100_000))
    # Exporting onto it fails as clearly, and leaves nothing there.
    registry.publish("m", write_model(tmp_path / "second", b"w" * 500_000))
    with pytest.raises(StorageError, match=r"cannot export to .*: it takes .* are free .*; make"):
        registry.export("m", small_disk / "out")
    monkeypatch.setattr(core_free, "free_bytes", lambda path: None)
    with pytest.raises(StorageError, match=r"cannot export to .*: No space left"):
        registry.export("m", small_disk / "out")
    assert {path.name for path in small_disk.iterdir()} == {"models"}


def test_a_disk_without_any_room_still_lists_and_removes(small_disk: Path, tmp_path: Path) -> None:
    """Removing is how one makes room."""
    registry = Registry(small_disk / "models")
    for number in (1, 2):
        registry.publish("m", write_model(tmp_path / str(number), b"%d" % number * 200_000))
    registry.path(registry.resolve("m:1"))
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(b"x" * 2**20)
    assert len(registry.list()) == 2
    with pytest.raises(StorageError, match="No space left"):
        registry.alias("m", "prod", 1)
    assert registry.remove("m:1") > 200_000
    registry.alias("m", "prod", 2)
    assert [(v.ref, v.aliases) for v in registry.list()] == [("m:2", ["prod"])]
    assert litter(small_disk / "models") == []


def test_processes_that_publish_at_once_get_different_numbers(prepared: Path) -> None:
    """While another collects garbage all the time, and this one reads."""
    actions = [("publish", "8"), ("publish", "8"), ("copy", "8"), ("collect", "40")]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.child", action, prepared,
             prepared.with_name("source"), count],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for action, count in actions
    ]  # fmt: skip
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    registry = Registry(prepared)
    seen = 0
    while any(child.poll() is None for child in children):
        versions = registry.list()
        assert len(versions) >= seen, "a version that was there is gone"
        seen = len(versions)
        registry.path(versions[-1])
        assert registry.resolve("m").version >= 2
    said = [child.communicate()[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0, 0]
    first, second, copies = ([int(number) for number in numbers] for numbers in said[:3])
    assert sorted(first + second) == list(range(3, 19))
    assert first == sorted(first)
    assert second == sorted(second)
    assert copies == list(range(1, 9))
    for version in registry.list():
        registry.verify(version)
    assert len(registry.list()) == 3 + 16 + 8
    assert litter(prepared) == []
