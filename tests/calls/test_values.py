"""What is pickled, and when it is pickled anew."""

from __future__ import annotations

from decimal import Decimal

import pytest

from zenos.calls import values
from zenos.core import limits
from zenos.core.errors import WorkerError


def test_a_class_that_has_changed_in_place_is_seen() -> None:
    class Rate:
        value = 1

    def rate() -> int:
        return Rate.value

    functions = values.Functions()
    before = functions.of(rate)
    Rate.value = 2
    after = functions.of(rate)
    assert values.load(before.body)() == 1
    assert values.load(after.body)() == 2


def test_a_function_is_pickled_once_while_nothing_of_it_changes() -> None:
    """Also one that refers to the class of a module."""

    def tenth() -> Decimal:
        return Decimal("0.1")

    functions = values.Functions()
    assert functions.of(tenth) is functions.of(tenth)


def test_an_error_that_is_too_large_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALL_BYTES_MAX", 20_000)
    error, text = values.load(values.error_of(ValueError("x" * 30_000), "y" * 30_000))
    assert isinstance(error, WorkerError)
    assert "raised a ValueError of" in error.message
    assert set(text) == {"y"}
    small, text = values.load(values.error_of(ValueError("x"), "y"))
    assert (str(small), text) == ("x", "y")
