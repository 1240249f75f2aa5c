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


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_what_make_and_pytest_are_told_to_run_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    asked = set(re.findall(r"(?:^|`|[A-Z_]+=\S+ )make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test"} & asked
    assert asked <= targets
    for path in re.findall(r"pytest (tests/\S+?)(?:`| )", text):
        assert (ROOT / path).exists(), path


def test_contributing_says_how_to_run_each_part_of_ci() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    parts = set(re.findall(r"make --no-print-directory ([a-z]+)", (ROOT / ".ci/run").read_text()))
    assert parts == {"install", "lint", "imports", "types", "test"}
    assert {part for part in parts - {"install"} if f"`make {part}`" not in text} == set()


def test_the_two_commands_of_the_readme_come_first_and_times_name_their_network() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^make (\S+)", text, re.MULTILINE) == ["demo", "test"]
    (timed,) = [p for p in text.split("\n\n") if re.search(r"installation took \d+ seconds", p)]
    assert re.search(r"mirror near by", timed)
    assert re.search(r"at \d+ Mbit/s", timed)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
