"""`zenos pull`: by the Hub's own client, from a server that answers as it does, or a directory."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import LIMIT_S, Daemon, zenos
from tests.models.files import write_model
from zenos.cli import waiting
from zenos.runtime import architectures

ROOT = Path(__file__).parent.parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "someone/tiny-llama"


class Hub(http.server.ThreadingHTTPServer):
    """One model: what it is, which files it has, and these. Nothing else is there (404)."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    """https://huggingface.co/docs/hub/api, as much of it as a download needs."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        files, resolved = self.server.files, f"/{MODEL}/resolve/{COMMIT}/"
        if path == f"/api/models/{MODEL}/revision/main":
            names = [{"rfilename": name} for name in files]
            self._send(json.dumps({"id": MODEL, "sha": COMMIT, "siblings": names}).encode())
        elif path == f"/api/models/{MODEL}/tree/{COMMIT}":
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": tag(data)}
                for name, data in files.items()
            ]
            self._send(json.dumps(listed).encode())
        elif path.startswith(resolved) and path.removeprefix(resolved) in files:
            name = path.removeprefix(resolved)
            if body:
                self.server.fetched.append(name)
            self._send(files[name], body=body)
        else:
            self._send(b'{"error": "Repository not found"}', 404, body=body)

    def _send(self, data: bytes, status: int = 200, *, body: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{tag(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if body:
            self.wfile.write(data)


def tag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a model that transformers would open, and others beside them."""
    directory = tmp_path_factory.mktemp("model")
    settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    architectures.save(architectures.build("llama-nano", settings, 64, 7), directory)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return {**files, "pytorch_model.bin": b"a pickle", "README.md": b"# Tiny"}


@pytest.fixture
def hub(model: dict[str, bytes]) -> Iterator[Hub]:
    with Hub(model) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def pull(hub: Hub, scratch: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """As a process: the Hub's client reads its settings when it is imported."""
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": str(scratch / "hf"), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "zenos", "pull", *args],
        env={
            **os.environ,
            **told,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(scratch),
            "NO_PROXY": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_model_of_the_hub_is_fetched_and_registered(
    daemon: Daemon, hub: Hub, model: dict[str, bytes], tmp_path: Path
) -> None:
    ran = pull(hub, tmp_path, MODEL)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "tiny-llama:1\n"
    assert (
        "not fetched: README.md, pytorch_model.bin (weights are taken as safetensors" in ran.stderr
    )
    registry = daemon.double.registry
    version = registry.resolve("tiny-llama")
    kinds = (".json", ".safetensors")
    wanted = {name: data for name, data in model.items() if name.endswith(kinds)}
    assert sorted(version.files) == sorted(wanted)
    path = registry.path(version)
    assert {name: (path / name).read_bytes() for name in version.files} == wanted
    # Pickles are not even fetched, and what was fetched is in the registry alone.
    assert sorted(set(hub.fetched)) == sorted(wanted)
    assert [left.name for left in tmp_path.glob("zenos-pull-*")] == []
    loaded: Any = architectures.load(path, torch.float32)
    assert loaded.num_parameters() == version.parameters


def test_what_the_hub_does_not_have_is_told(daemon: Daemon, hub: Hub, tmp_path: Path) -> None:
    ran = pull(hub, tmp_path, "someone/nothing", "mine")
    assert ran.returncode == 3
    assert ran.stderr == (
        "zenos: cannot find someone/nothing on the Hub, and there is no such directory here\n"
    )
    assert "mine" not in {version.name for version in daemon.double.registry.list()}


# -- from a directory


def test_what_is_not_taken_is_said_and_written_down(daemon: Daemon, tmp_path: Path) -> None:
    files = write_model(tmp_path / "theirs")
    (tmp_path / "theirs/pytorch_model.bin").write_bytes(b"\x80\x04")
    (tmp_path / "theirs/optimizer.pt").write_bytes(b"\x80\x04")
    (tmp_path / "theirs/modeling_own.py").write_text("raise SystemExit")
    config = {**json.loads(files["config.json"].read_bytes()), "auto_map": {"AutoModel": "own.M"}}
    files["config.json"].write_text(json.dumps(config))
    ran = zenos("pull", str(tmp_path / "theirs"), "mine")
    assert ran.code == 0
    assert ran.out == "mine:1\n"
    left = [line for line in ran.err.splitlines() if line.startswith("left out: ")]
    assert "optimizer.pt, pytorch_model.bin (a pickle, and loading one runs" in left[1]
    assert "modeling_own.py (program code" in left[0]
    assert "auto_map of config.json (it names program code" in left[2]
    shown = zenos("show", "mine").out
    assert "left out" in shown
    assert "pytorch_model.bin" in shown

    again = zenos("pull", str(tmp_path / "theirs"), "mine", "--json")
    said = json.loads(again.out)["lineage"]["left_out"]
    assert sorted(said) == [
        "auto_map of config.json",
        "modeling_own.py",
        "optimizer.pt",
        "pytorch_model.bin",
    ]


def test_a_directory_without_a_name_of_its_own(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "theirs")
    monkeypatch.chdir(tmp_path / "theirs")
    assert zenos("pull", ".").out == "theirs:1\n"
    ran = zenos("pull", "/")
    assert ran.code == 2
    assert "cannot tell what to call the model: '/' has no last part; give a NAME" in ran.err
    ran = zenos("pull", ".", "")
    assert ran.code == 2
    assert "cannot use an empty model name" in ran.err


def test_a_long_import_says_what_it_does(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "theirs")
    said: list[str] = []
    told = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            told.set()

    monkeypatch.setattr(waiting, "say", say)
    monkeypatch.setattr(waiting, "WORK_S", 0.001)
    monkeypatch.setattr(waiting, "WORK_AGAIN_S", 0.001)
    take = daemon.double.registry.import_directory

    def slow(*args: Any) -> Any:
        assert told.wait(LIMIT_S)
        return take(*args)

    monkeypatch.setattr(daemon.double.registry, "import_directory", slow)
    assert zenos("pull", str(tmp_path / "theirs"), "mine").code == 0
    assert all(text.startswith("checking and copying ") for text in said)
    assert all(f"of {tmp_path / 'theirs'}: 0 s so far" in text for text in said[:2])


def test_a_short_import_says_nothing_of_it(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "theirs")
    monkeypatch.setattr(waiting, "WORK_S", 1e6)
    assert zenos("pull", str(tmp_path / "theirs"), "mine").err == ""
