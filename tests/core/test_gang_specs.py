"""What a training with several workers asks for."""

from __future__ import annotations

from typing import Any

import pytest

from zenos.client import build
from zenos.core.errors import InvalidError
from zenos.core.resources import Resources

GIB = 2**30


def task(**changes: Any) -> Any:
    given = {"model": "m", "arch": "llama-nano", "data": "/text", **changes}
    return build.train_task(None, given)


def test_what_is_asked_for_is_for_each_worker() -> None:
    assert task(workers=3, cpu=2, memory="1GiB").resources == Resources(cpu=6000, memory=3 * GIB)
    assert task(workers=2, gpu=1, gpu_memory="4GiB").resources == Resources(
        cpu=2000, gpu=2000, memory=4 * GIB, gpu_memory=8 * GIB
    )
    assert task(cpu=2).resources == task(workers=1, cpu=2).resources
    task(workers=2).check()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"workers": 2, "cpu": 0.5}, "cannot train with 2 workers on 1 core: each needs one"),
        ({"workers": 2, "memory": "3MiB"}, "in so little memory: at least 4 MiB for each"),
        ({"workers": 2, "gpu": 0.5}, "cannot train with 2 workers on 1 GPU: each needs one of"),
        ({"workers": 9}, "cannot split batches of 8 over 9 workers"),
        ({"workers": 0}, "cannot use workers 0: it must be from 1 to 64"),
        ({"workers": 10**9}, "cannot use workers 1000000000: it must be from 1 to 64"),
        ({"workers": 2, "backend": "nccl"}, "cannot use nccl without GPUs"),
        ({"workers": 2, "backend": "shared", "gpu": 1}, "cannot use shared memory between GPUs"),
    ],
)
def test_gangs_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        task(**changes).check()
