"""What `make` does before anything is installed: it says what is missing, and installs once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
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


def make(clone: Path, *more: str, target: str = "install") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", target, *more],
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


@pytest.mark.parametrize("target", ["install", "demo", "test"])
def test_a_python_that_is_not_there_is_said_to_be_missing(clone: Path, target: str) -> None:
    for python in ("no-such-python", "/nowhere/python3"):
        done = make(clone, f"PYTHON={python}", target=target)
        assert done.returncode != 0
        assert f"cannot install: there is no program {python};" in done.stdout
        assert "older" not in done.stdout
        assert not (clone / ".venv").exists()


def test_a_program_that_is_no_python_is_said_to_be_none(clone: Path) -> None:
    done = make(clone, "PYTHON=false")
    assert done.returncode != 0
    assert "cannot install: false does not run as a Python" in done.stdout
    assert "older" not in done.stdout


def test_what_is_installed_is_not_installed_again(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").touch()
    done = make(clone, "PYTHON=/nowhere")
    assert done.returncode == 0, done.stderr
    assert "Installing" not in done.stdout


@pytest.mark.parametrize(("target", "does"), [("demo", "zenos demo"), ("test", "-m pytest")])
def test_both_commands_install_first_and_once(clone: Path, target: str, does: str) -> None:
    first = make(clone, "--dry-run", target=target).stdout
    assert 0 <= first.find("scripts/install-torch") < first.find("-c constraints.txt")
    assert first.find("-c constraints.txt") < first.find(does)
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").touch()
    again = make(clone, "--dry-run", target=target).stdout
    assert does in again
    assert "pip install" not in again
    assert "install-torch" not in again


def test_the_long_storms_are_run_by_soak_and_not_by_test(clone: Path) -> None:
    assert "-m pytest -m soak " in make(clone, "--dry-run", target="soak").stdout
    assert "soak" not in make(clone, "--dry-run", target="test").stdout
    listed = ["-m", "pytest", "--collect-only", "-p", "no:xdist", "tests/crash/test_crash.py"]

    def storms(*more: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, *listed, *more], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        return set(re.findall(r"test_a_\w*storm", done.stdout))

    assert storms() == {"test_a_storm"}
    assert storms("-m", "soak") == {"test_a_long_storm"}


def test_an_installation_that_failed_is_no_installation(clone: Path) -> None:
    python = clone / "python"
    python.write_text(
        "#!/bin/sh\n"
        'test "$1 $2" = "-m venv" || exit 0\n'
        "mkdir -p .venv/bin && printf '#!/bin/sh\\nexit 1\\n' > .venv/bin/python\n"
        "chmod +x .venv/bin/python\n"
    )
    python.chmod(0o755)
    done = make(clone, f"PYTHON={python}", "TORCH_BUILD=any")
    assert done.returncode != 0
    assert "1 of 2: torch 2.13.0" in done.stdout
    assert (clone / ".venv").exists()
    assert not (clone / ".venv" / ".installed").exists()


def test_whatever_is_installed_is_pinned_to_one_version() -> None:
    pins = dict(
        line.strip().lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(extras[n] for n in ("dev", "demo", "gpu", "plot"))]
    flat = [one for each in wanted for one in ([each] if isinstance(each, str) else each)]
    names = {re.split("[<>=~!\\[; ]", one)[0].lower().replace("_", "-") for one in flat}
    assert names - pins.keys() == set()
