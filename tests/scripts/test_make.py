"""What `make` does before anything is installed: it says what is missing, and installs once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of a clone as setting up needs."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "install-torch", tmp_path / "scripts")
    return tmp_path


def make(clone: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "install", *more],
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("fails_at", "says"),
    [
        ("*ensurepip*", "sudo apt-get install -y python3-venv"),
        ("*version_info*", "is older than 3.11; set PYTHON to a newer one"),
    ],
)
def test_what_is_missing_is_said_and_nothing_made(clone: Path, fails_at: str, says: str) -> None:
    python = clone / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in {fails_at}) exit 1;; *) exit 0;; esac\n')
    python.chmod(0o755)
    done = make(clone, f"PYTHON={python}")
    assert done.returncode != 0
    assert says in done.stdout
    assert not (clone / ".venv").exists()


def test_what_is_installed_is_not_installed_again(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").touch()
    done = make(clone, "PYTHON=/nowhere")
    assert done.returncode == 0, done.stderr
    assert "Installing" not in done.stdout
