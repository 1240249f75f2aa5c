"""The page on the bus says what the bus is."""

from __future__ import annotations

from pathlib import Path

from zenos import bus
from zenos.bus.reference import page

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "bus.md"


def test_the_page_is_up_to_date() -> None:
    again = "write it anew: python -m zenos.bus.reference > docs/reference/bus.md"
    assert PAGE.read_text(encoding="utf-8") == page(), again


def test_everything_public_is_on_it_and_said_in_words() -> None:
    text = page()
    headings = {line.lstrip("# ").strip("`") for line in text.splitlines() if line[:1] == "#"}
    named = {name.removeprefix("zenos.bus.") for name in headings}
    assert set(bus.__all__) - {"AsyncBus"} <= named
    assert "\n\n\n#" not in text, "a heading without a word"
