from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine whose zygote is only started when it is needed: programs need none."""
    made = Machine(tmp_path, "zygote=lazy")
    yield made
    made.close()
