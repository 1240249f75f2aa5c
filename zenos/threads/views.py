"""What a pool shows of itself. Plain records, so that they can be sent."""

from __future__ import annotations

from zenos.core.thread_views import LaneView, PoolView, ThreadView

__all__ = ["LaneView", "PoolView", "ThreadView"]
