"""Whatever a user can name has a heading in the documentation, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from zenos.core.config import RELOADABLE, Config

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def headings(path: str) -> set[str]:
    text = (ROOT / path).read_text(encoding="utf-8")
    return {line.lstrip("#").strip().strip("`") for line in text.splitlines() if line[:1] == "#"}


@pytest.mark.parametrize("name", [field.name for field in msgspec.structs.fields(Config)])
def test_every_setting_has_a_heading(name: str) -> None:
    assert name in headings("docs/reference/settings.md")


@pytest.mark.parametrize("name", [field.name for field in msgspec.structs.fields(Config)])
def test_every_setting_says_whether_it_is_read_again(name: str) -> None:
    text = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert ("*Read again on SIGHUP.*" in section) == (name in RELOADABLE)
    assert ("*Needs a restart.*" in section) == (name not in RELOADABLE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
