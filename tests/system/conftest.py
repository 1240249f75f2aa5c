from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.harness import System


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A home without a daemon yet; its zygote is only started when it is needed."""
    made = System(tmp_path, "zygote=lazy")
    yield made
    made.close()
