"""The worked case of shared memory (examples/shared_memory.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "shared_memory.py"


def test_the_array_arrives_and_its_memory_is_used_again() -> None:
    run = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True)
    total, took, again = run.stdout.splitlines()
    assert total == "the other process' sum: 4,000,000"
    assert took.startswith("giving it 64,000,000 bytes took ")
    assert again == "its memory is used again: yes"
