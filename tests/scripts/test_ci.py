"""`.ci/run`: every part is run, and whichever fails, it fails."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PARTS = ["install", "lint", "imports", "types", "test"]

# Instead of make: writes down which part it is asked for, and fails at the one that is to fail.
MAKE = """#!/bin/sh
for part; do :; done
echo "$part" >> asked
echo "words of $part"
test "$part" != "$FAILS"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in which nothing is done."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "make").write_text(MAKE)
    (tmp_path / "bin" / "make").chmod(0o755)
    return tmp_path


def run(clone: Path, fails: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", clone / ".ci" / "run"],
        env={"PATH": f"{clone / 'bin'}:/usr/bin:/bin", "FAILS": fails, "TMPDIR": str(clone)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_it_runs_every_part(clone: Path) -> None:
    done = run(clone, "nothing")
    assert done.returncode == 0, done.stderr
    assert sorted((clone / "asked").read_text().split()) == sorted(PARTS)
    # Each says after how long it begins, and the last line how long the whole has taken.
    for part in PARTS:
        assert re.search(rf"^== {part} \(\d+ s\)$", done.stdout, re.MULTILINE)
    assert re.search(r"\n== done in \d+ s\n$", done.stdout)


@pytest.mark.parametrize("part", PARTS)
def test_it_fails_with_any_part_and_shows_what_that_said(clone: Path, part: str) -> None:
    done = run(clone, part)
    assert done.returncode != 0
    assert f"words of {part}" in done.stdout
    assert not list(clone.glob("tmp.*"))
