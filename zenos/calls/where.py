"""Where this process is: in a lane of calls, or not."""

from __future__ import annotations

from typing import Final


class Where:
    """What is known of the process."""

    is_lane = False


where: Final = Where()
