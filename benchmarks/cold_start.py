"""From a request for a model that isn't loaded to its first token."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx

from benchmarks import homes, models
from benchmarks.report import Row, alternate, compare, target
from zenos.client import Client

COLD_S_MAX = 1.0
FRESH = """
import sys, time
begun = time.perf_counter()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
path = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
prompt = tokenizer("def ", return_tensors="pt")
model.generate(**prompt, max_new_tokens=1, do_sample=False)
"""


def rows(*, quick: bool) -> list[Row]:
    """Seconds to the first token, by the client's clock."""
    with homes.temporary() as root, homes.daemon(root) as client:
        path = models.make(client)
        cold, fresh = alternate(
            lambda: first_token_s(client, root), lambda: fresh_s(path), 2 if quick else 7
        )
    row = compare(
        f"cold start to first token, {models.PARAMETERS}, warm zygote",
        "s",
        cold,
        "a fresh process with transformers",
        fresh,
    )
    return [target(row, f"≤ {COLD_S_MAX:g} s", row.ours.median <= COLD_S_MAX)]


def first_token_s(client: Client, root: Path) -> float:
    """One request over HTTP, which makes the daemon load the model; unloaded afterwards."""
    daemon = json.loads((root / "daemon.json").read_bytes())
    body = {"model": models.NAME, "prompt": "def ", "max_tokens": 1, "temperature": 0}
    token = (root / "token").read_text().strip()
    begun = time.perf_counter()
    httpx.post(
        f"{daemon['url']}/v1/completions",
        json=body,
        headers={"Authorization": f"Bearer {token}"},
        timeout=120,
    ).raise_for_status()
    taken = time.perf_counter() - begun
    for deployment in client.deployments():
        client.stop(deployment.name)
    while any(not view.task.is_ended for view in client.tasks()):
        time.sleep(0.02)
    return taken


def fresh_s(path: Path) -> float:
    """A process that imports, loads and generates one token."""
    begun = time.perf_counter()
    homes.python(FRESH, str(path))
    return time.perf_counter() - begun
