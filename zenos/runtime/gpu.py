"""What a worker may take of its GPUs' memory, and how a replica's cache fits into that."""

from __future__ import annotations

import logging
from typing import Final

import torch

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.resources import show_size
from zenos.core.task import Task

log = logging.getLogger(__name__)

# What a step needs beside weights and cache: attention may copy a layer's keys and values, once for
# each head that asks.
STEP_SHARE: Final = 0.25
STEP_BYTES_MIN: Final = 256 * limits.MIB
# So many sequences together are worth more than the last part of a very long context.
ROWS_WANTED: Final = 8
CONTEXT_KEPT: Final = 2048


def limit_bytes(task: Task, total: int) -> int:
    """Bytes that a task may use of each of its devices, which have `total` bytes.

    What it has asked for, spread over its devices; else its share of the device.
    """
    if task.allocation is None or not task.allocation.shares:
        return 0
    count = len(task.allocation.shares)
    asked = -(-task.allocation.resources.gpu_memory // count)
    share = min(task.allocation.shares.values())
    return min(asked or total * share // 1000, total)


def restrict(task: Task) -> int:
    """Hold this process to its task's limit on every device it sees; the limit (bytes), 0: none.

    By torch's allocator (`set_per_process_memory_fraction`): what CUDA itself takes comes on top.
    """
    if task.allocation is None or not task.allocation.shares or not torch.cuda.is_available():
        return 0
    limit = 0
    for device in range(torch.cuda.device_count()):
        total = int(torch.cuda.get_device_properties(device).total_memory)
        limit = limit_bytes(task, total)
        torch.cuda.set_per_process_memory_fraction(limit / total, device)
        log.info("GPU %d: at most %s of %s", device, show_size(limit), show_size(total))
    return limit


def cache_bytes(limit: int, used: int, free: int) -> int:
    """Bytes for a replica's cache.

    limit: what the process may use, 0 for all; used: what its tensors take already; free: what the
    device has left, whoever took the rest.
    """
    left = min(limit - used, free) if limit else free
    return max(left - max(int(left * STEP_SHARE), STEP_BYTES_MIN), 0)


def layout(positions: int, slots: int, context: int, *, fixed: bool) -> tuple[int, int]:
    """Rows of the cache and positions of each, where the whole is reserved at once.

    positions: that fit into the memory; slots and context: as wished for; fixed: the context was
    asked for, and is kept whole. InvalidError when not even one row fits.

    1. All of it, if it fits.
    2. Else a context that nobody asked for is shortened, so that ROWS_WANTED rows fit; not below
       CONTEXT_KEPT positions.
    3. As many rows as fit then; the last one may be shorter than wished for, but not than asked.
    """
    if slots * context <= positions:  # 1
        return slots, context
    if not fixed:  # 2
        context = min(context, max(positions // min(slots, ROWS_WANTED), CONTEXT_KEPT))
        context = min(context, positions)  # 3
    rows = min(slots, positions // context) if context else 0
    if rows < 1:
        raise InvalidError(
            f"cannot serve a context of {context} tokens: the GPU's memory holds {positions};"
            " give a smaller --context, a larger share of a GPU, or a smaller model"
        )
    return rows, context
