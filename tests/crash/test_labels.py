"""Failpoints: each is passed somewhere, tried somewhere, and does what its plan says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import labels
from zenos.core import failpoints

ROOT = Path(__file__).parent.parent.parent
PASSING = re.compile(
    r"""failpoints\.passing\(f?"([^"]+)"\)|^\s*passing\("([^"]+)"\)""", re.MULTILINE
)


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_every_label_is_tried() -> None:
    assert sorted(labels.TRIED) == sorted(failpoints.LABELS)


def test_every_label_is_passed_and_every_pass_is_listed() -> None:
    passed: set[str] = set()
    for path in (ROOT / "zenos").rglob("*.py"):
        for found in PASSING.findall(path.read_text(encoding="utf-8")):
            label = found[0] or found[1]
            names = ("launcher", "zygote") if "{name}" in label else ("",)
            passed |= {label.replace("{name}", name) for name in names}
    assert sorted(passed) == sorted(failpoints.LABELS)


@pytest.mark.parametrize("plan", ["nonsense=kill", "loop.decided=sing", "loop.decided"])
def test_a_plan_that_means_nothing_is_refused(plan: str) -> None:
    with pytest.raises(ValueError, match="unknown label or action"):
        failpoints.arm(plan)


def test_a_count_is_of_passes() -> None:
    failpoints.arm("loop.decided=enospc@2, loop.committed=raise")
    failpoints.passing("loop.decided")
    with pytest.raises(OSError, match=r"loop\.decided.*space"):
        failpoints.passing("loop.decided")
    failpoints.passing("loop.decided")
    with pytest.raises(OSError, match=r"loop\.committed"):
        failpoints.passing("loop.committed")


def test_a_file_arms_one_process_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENOS_TASK", "t7")
    failpoints.arm(f"dir:{tmp_path}")
    failpoints.passing("loop.decided")
    (tmp_path / "loop.decided=raise@t8").touch()
    failpoints.passing("loop.decided")
    for name in ("loop.decided=raise", "loop.decided=raise@t7"):
        (tmp_path / name).touch()
        failpoints.passing("loop.committed")
        with pytest.raises(OSError, match="failpoint"):
            failpoints.passing("loop.decided")
        failpoints.passing("loop.decided")
    assert [path.name for path in tmp_path.iterdir()] == ["loop.decided=raise@t8"]
