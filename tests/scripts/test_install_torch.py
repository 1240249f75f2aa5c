"""Which build of torch `make` installs: from wheels of our own making, without any network."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "install-torch"
HAS_DRIVER = Path("/proc/driver/nvidia/version").exists()


def make_wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    """A wheel with one module, `NAME.py`, that has nothing in it."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": metadata + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(path, text)


class Offer:
    """A folder of wheels that is all that pip sees, and one into which it installs."""

    def __init__(self, root: Path) -> None:
        self.wheels, self.target, self.bin = root / "wheels", root / "target", root / "bin"
        for folder in (self.wheels, self.bin):
            folder.mkdir()

    def install(self, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "TORCH_"))}
        settings = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_TARGET": str(self.target),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
        }
        return subprocess.run(
            [str(SCRIPT), sys.executable, "2.13.0"],
            env=environment | settings | more,
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def installed(self) -> list[str]:
        return sorted(path.stem for path in self.target.glob("*.dist-info"))


@pytest.fixture
def offer(tmp_path: Path) -> Offer:
    return Offer(tmp_path)


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver")
def test_without_a_driver_it_is_the_build_for_cpus(offer: Offer) -> None:
    make_wheel(offer.wheels, "torch", "2.13.0+cpu", needs="other")
    make_wheel(offer.wheels, "torch", "2.13.0+cu130", needs="other")
    make_wheel(offer.wheels, "other", "9.9")
    done = offer.install()
    assert done.returncode == 0, done.stderr
    # What it needs comes later, in the versions that are tested.
    assert offer.installed == ["torch-2.13.0+cpu"]


@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cu130"])
def test_where_only_another_build_is_on_offer_it_is_that(offer: Offer, version: str) -> None:
    make_wheel(offer.wheels, "torch", version)
    done = offer.install()
    assert (done.returncode, done.stderr) == (0, "")
    assert offer.installed == [f"torch-{version}"]


def test_with_a_driver_it_is_what_pip_prefers(offer: Offer) -> None:
    make_wheel(offer.wheels, "torch", "2.13.0+cpu")
    make_wheel(offer.wheels, "torch", "2.13.0+cu130")
    (offer.bin / "nvidia-smi").write_text("#!/bin/sh\n")
    (offer.bin / "nvidia-smi").chmod(0o755)
    done = offer.install()
    assert done.returncode == 0, done.stderr
    assert offer.installed == ["torch-2.13.0+cu130"]


def test_the_build_can_be_said(offer: Offer) -> None:
    make_wheel(offer.wheels, "torch", "2.13.0+cu130")
    done = offer.install(TORCH_BUILD="cpu")
    assert done.returncode == 1
    assert "No matching distribution found for torch==2.13.0+cpu" in done.stderr
    assert offer.installed == []
    assert offer.install(TORCH_BUILD="any").returncode == 0
    assert offer.installed == ["torch-2.13.0+cu130"]
    refused = offer.install(TORCH_BUILD="gpu")
    assert refused.returncode == 2
    assert "cannot install torch: TORCH_BUILD is 'gpu'" in refused.stderr


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver")
def test_what_goes_wrong_with_one_build_is_not_hidden_by_another(offer: Offer) -> None:
    (offer.wheels / "torch-2.13.0+cpu-py3-none-any.whl").write_bytes(b"no wheel")
    make_wheel(offer.wheels, "torch", "2.13.0+cu130")
    done = offer.install()
    assert done.returncode == 1
    assert "2.13.0+cpu" in done.stderr
    assert offer.installed == []
