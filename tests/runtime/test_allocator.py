"""What a step frees is there for the next one."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from zenos.runtime import allocator

CODE = """
import resource
import torch
from zenos.runtime import allocator

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(size) for size in (100, 3_000_000, 40_000, 12_000_000)]
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

allocator.keep_freed()
first, *others = [faults() for _ in range(20)]  # what fits where is found out in the first ones
print(first, sorted(others)[len(others) // 2])
allocator.give_back()
print(faults())
"""


NAMES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def faults(**settings: str) -> list[int]:
    """Of 60 MB in pages of 4 KiB, or fewer larger ones: at first, usually, once given back."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    ran = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**kept, **settings},
    )
    return [int(word) for word in ran.stdout.split()]


def test_what_is_freed_is_used_again_until_it_is_given_back() -> None:
    first, usual, later = faults()
    assert usual < first / 10 < later


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072"),
    ],
)
def test_a_threshold_that_the_environment_sets_holds(name: str, value: str) -> None:
    first, usual, _ = faults(**{name: value})
    assert usual > first / 2


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({}, [-1, -3]),
        ({"MALLOC_TRIM_THRESHOLD_": "0"}, [-3]),
        ({"MALLOC_MMAP_THRESHOLD_": "0"}, [-1]),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=0:glibc.malloc.mmap_threshold=0"}, []),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}, [-1, -3]),
    ],
    ids=str,
)
def test_only_what_the_environment_leaves_open_is_changed(
    settings: dict[str, str], changed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Library:
        gnu_get_libc_version = None

        def mallopt(self, what: int, value: int) -> int:
            calls.append(what)
            return 1

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    allocator.keep_freed()
    assert calls == changed
