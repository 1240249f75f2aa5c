"""The demo, as a user sees it: everything real, in half a minute."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import zenos
from tests.processes import mentioning, until
from zenos.cli import demo

ZENOS = [sys.executable, "-m", "zenos"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An own folder for temporary files, so that what is left over can be told."""
    (tmp_path / "tmp").mkdir()
    return {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "COLUMNS": "100"}


@pytest.mark.timeout(600)
def test_it_trains_registers_serves_and_leaves_nothing(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [*ZENOS, "demo", "--quick", "--output", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    loss = {
        name: float(found)
        for name, found in re.findall(
            r"│ (held-out loss|\w+ baseline) +│ +([\d.]+) nats", done.stdout
        )
    }
    assert loss.keys() == {"held-out loss", "bigram baseline", "unigram baseline"}, done.stderr
    assert loss["held-out loss"] < loss["bigram baseline"] < loss["unigram baseline"]
    assert done.returncode == 0, done.stdout + done.stderr
    answer = done.stdout.partition("asks for 'def ':")[2].partition("What was measured")[0]
    assert len(answer.split()) > 5
    # The second act: a training gave way, and nothing of it was lost.
    assert done.stdout.count("the first token came after") == 1
    assert re.search(r"gave way once\s+│\s+same weights as undisturbed", done.stdout)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "tmp").iterdir())
    assert not mentioning(str(tmp_path))


def test_told_to_end_it_takes_its_daemon_with_it(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    demo = subprocess.Popen(
        [*ZENOS, "demo", "--quick", "--output", str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "training" in line:
                demo.send_signal(signal.SIGTERM)
                break
        demo.stdout.read()
    assert demo.returncode == 128 + signal.SIGTERM
    until(lambda: not mentioning(str(tmp_path / "tmp")))
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("missing", ["openai", "matplotlib"])
def test_without_its_extra_it_refuses_before_any_work(
    missing: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    # None there is what Python has for a module that must not be imported.
    code = f"import sys; sys.modules[{missing!r}] = None; from zenos.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--quick", "--output", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"cannot run the demo: {missing} " in done.stderr
    assert "type: pip install 'zenos[demo]'" in done.stderr
    assert done.stdout == ""
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("result", "same", "says"),
    [
        ({"beats_bigram": True}, True, ""),
        ({"beats_bigram": False}, True, "did not beat the bigram baseline"),
        ({}, True, "did not beat the bigram baseline"),
        ({"beats_bigram": True}, False, "ended in other weights"),
    ],
)
def test_its_exit_code_says_whether_the_model_is_any_good(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    result: dict[str, object],
    same: bool,
    says: str,
    keep: bool,
) -> None:
    ended: list[Path] = []
    home = tmp_path / ("home" * 30)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(demo.tempfile, "mkdtemp", lambda **_: str(home))
    monkeypatch.setattr(demo, "_run", lambda *_: demo._verdict(result, same=same))
    monkeypatch.setattr(demo, "_end", ended.append)
    ran = zenos("demo", "--output", str(tmp_path), *(["--keep"] if keep else []))
    assert ran.code == (1 if says else 0), ran.err
    assert says in ran.err
    # However good it is, its daemon is ended unless it is to be kept.
    assert ended == ([] if keep else [home])
    if keep:
        assert f"  export ZENOS_HOME={home}\n" in ran.out  # to be copied: in one line
    else:
        assert ran.out.strip().count("\n") == 0
