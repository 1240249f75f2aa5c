"""A real daemon with a small model that was trained by it, for the official openai client."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.processes import mentioning, until
from zenos.cli import daemon_process
from zenos.client import Client, connect
from zenos.core.home import Home

WORDS = [
    "the",
    "river",
    "ran",
    "over",
    "old",
    "stones",
    "while",
    "green",
    "fields",
    "lay",
    "under",
    "clouds",
    "and",
    "one",
    "bird",
    "sang",
    "of",
    "rain",
]
SLOTS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[Client]:
    """A daemon with the model `m`, deployed in float32 with few slots as `m`."""
    home = root / "home"
    # Beside `m` there is one place, for which others take short turns. Who is ended and not drained
    # would lose its answers at once.
    settings = ["keep_alive_s=600", "cpus=2", "model_wait_s=0.3", "model_residence_s=0.3"]
    flags = [word for setting in (*settings, "cancel_grace_s=0.5") for word in ("--set", setting)]
    daemon = daemon_process.start(Home(home), ["--port", "0", *flags])
    with connect(home=home) as made:
        try:
            train(made, root)
            made.serve("m", dtype="float32", slots=SLOTS, min_replicas=1)
            until(lambda: any(view.task.ready for view in made.tasks()), 60)
            yield made
        finally:
            made.shut_down("suspend")
            daemon_process.wait_gone(daemon, 60)
    assert not mentioning(str(root))


def train(client: Client, root: Path) -> None:
    """Some steps: the model is no good, and its weights are as real as any."""
    source = random.Random(0)  # noqa: S311 - text, no secret
    text = root / "text"
    text.mkdir()
    for number in range(20):
        words = source.choices(WORDS, k=400)
        (text / f"{number}.txt").write_text(" ".join(words))
    task = client.train(
        model="m",
        arch="llama-nano",
        settings={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        data={"paths": [str(text)]},
        vocab_size=320,
        sequence_length=64,
        batch_size=4,
        steps=20,
        warmup=2,
        cpu=1,
    ).wait(120)
    assert task.state == "succeeded", task.outcome


@pytest.fixture(scope="module")
def ai(client: Client, root: Path) -> Iterator[openai.OpenAI]:
    """The official client, which retries nothing here."""
    token = (root / "home" / "token").read_text().strip()
    with openai.OpenAI(
        base_url=f"{client.address.url}/v1", api_key=token, max_retries=0, timeout=60
    ) as made:
        yield made
