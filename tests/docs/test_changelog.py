"""Fragments of the changelog are named and filled as CONTRIBUTING.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "changelog.d"
NAME = re.compile(r"\+[a-z0-9]+(-[a-z0-9]+)*\.(feature|bugfix|doc|removal|misc)\.md")
FRAGMENTS = [path for path in sorted(FOLDER.iterdir()) if path.name[0] != "."]


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
def test_a_fragment_is_well_formed(path: Path) -> None:
    assert NAME.fullmatch(path.name), f"name it +WORDS.KIND.md: {path.name}"
    text = path.read_text(encoding="utf-8")
    assert text.strip()[-1:] == ".", "a fragment is made of sentences"
    assert not text.startswith(("#", "-", "*")), "towncrier makes the heading and the bullet"


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("+a-b.feature.md", True),
        ("a.feature.md", False),
        ("+a.fix.md", False),
        ("+A.doc.md", False),
    ],
)
def test_names(name: str, good: bool) -> None:
    assert bool(NAME.fullmatch(name)) is good
