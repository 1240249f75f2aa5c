"""What is computed in: what was asked for, or what the device multiplies by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zenos.runtime import precision

CPU = torch.device("cpu")


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "_CPUINFO", path)
    return path


def test_a_processor_without_units_computes_in_float32(cpuinfo: Path) -> None:
    cpuinfo.write_text("processor : 0\nflags : fpu avx2 avx512f\nFeatures : asimd\n")
    assert precision.resolve("auto", CPU) == (torch.float32, "")


def test_what_was_asked_for_is_done_and_its_price_said(cpuinfo: Path) -> None:
    cpuinfo.write_text("flags : fpu avx2 avx512f\nFeatures : asimd\n")
    dtype, note = precision.resolve("bfloat16", CPU)
    assert dtype == torch.bfloat16
    assert note == "this cpu emulates bfloat16, which is slow: dtype auto uses float32"
    assert precision.resolve("float32", CPU) == (torch.float32, "")


def test_a_processor_with_units_uses_them(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo.write_text("flags : fpu avx512_bf16\nFeatures : asimd bf16\n")
    monkeypatch.setattr(precision, "library_has_bfloat16", lambda: True)
    assert precision.resolve("auto", CPU) == (torch.bfloat16, "")
    assert precision.resolve("bfloat16", CPU) == (torch.bfloat16, "")
    monkeypatch.setattr(precision, "library_has_bfloat16", lambda: False)
    assert precision.resolve("auto", CPU) == (torch.float32, "")


def test_nothing_is_known_of_a_processor_that_says_nothing(cpuinfo: Path) -> None:
    assert precision.flags() == set()
    assert precision.resolve("auto", CPU)[0] == torch.float32


def test_the_library_is_asked_in_words_it_knows() -> None:
    assert precision.library_has_bfloat16() in (True, False)
