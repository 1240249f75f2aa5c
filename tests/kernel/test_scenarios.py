"""Whatever happens to nodes, workers and the daemon: nothing is lost, doubled or forgotten."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.kernel.scenarios import World

FEW, MANY, AT_ONCE = 300, 10_000, 50


def hold(seeds: range) -> None:
    for seed in seeds:
        try:
            World(seed).run()
        except Exception as error:
            error.add_note(f"replay it: python -m tests.kernel.replay {seed}")
            raise


@pytest.mark.parametrize("first", range(0, FEW, AT_ONCE))
def test_it_holds(first: int) -> None:
    hold(range(first, first + AT_ONCE))


@pytest.mark.soak
@pytest.mark.parametrize("first", range(FEW, MANY, AT_ONCE))
def test_it_holds_for_long(first: int) -> None:
    hold(range(first, first + AT_ONCE))


def test_a_seed_says_what_happens_everywhere() -> None:
    """Also in another process, whose sets are in another order."""

    def replayed(hashes: str) -> str:
        argv = [sys.executable, "-m", "tests.kernel.replay", "7"]
        done = subprocess.run(
            argv,
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    first = replayed("1")
    assert first == replayed("2")
    assert f"trace {World(7).run().trace.hexdigest()}" in first
